"""From sources to resized images, labels, databases and means."""
