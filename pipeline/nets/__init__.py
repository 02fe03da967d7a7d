"""From a template or a prototxt to nets and solvers for training."""
