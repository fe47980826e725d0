"""The content-addressed feature store on disk. Read README.md, then `store`."""
