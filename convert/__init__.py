"""From one layout of a checkpoint or an adapter to another; each file does one of them."""
