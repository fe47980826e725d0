"""Pictures like a picture: the verb `similar`, its gallery, its exact search and its figures. Read `similar` first."""
