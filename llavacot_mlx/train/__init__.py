"""Fine-tuning on four-stage data."""
