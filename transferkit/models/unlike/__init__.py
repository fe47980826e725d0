"""How unlike its training pictures a picture is to a model, and whether a whole folder is. Read `distance` first."""
