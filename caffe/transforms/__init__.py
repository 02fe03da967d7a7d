"""Image preprocessing and augmentation between record and blob; boxes and detections."""
