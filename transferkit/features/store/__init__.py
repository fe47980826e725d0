"""The content-addressed feature store on disk. Read `store` first."""
