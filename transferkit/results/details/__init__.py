"""What a task tells of measured pictures besides figures: tables, charts, mistakes; one part of each task."""
