"""Air to numbers and back: reading and writing sound, features, augmentation."""
