"""Objects: heads that find them, what their training minimises, what is kept of what they find."""
