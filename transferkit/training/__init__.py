"""Training a model on a folder. Read `finetune` first: it tells the whole story."""
