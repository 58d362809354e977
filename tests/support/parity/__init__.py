"""Parity with transformers' own Mllama, and with mlx-vlm where folders are shared."""
