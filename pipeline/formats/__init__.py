"""File formats that all stages share: images, lists and records."""
