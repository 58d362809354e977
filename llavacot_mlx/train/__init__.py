"""Fine-tuning on four-stage data: what is learned, from what, in which order."""
