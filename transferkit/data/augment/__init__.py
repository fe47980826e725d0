"""From a decoded picture to what a network sees: augmentation, answers carried along, views. Read `transform` first."""
