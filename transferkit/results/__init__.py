"""What is done with a trained model. Rooms: `predict`, `evaluate`, `explain`, `report`, `export`, `serve`."""
