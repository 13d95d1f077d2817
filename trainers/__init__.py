"""Trainers: SFT, GRPO, GRPO-D and the embedded tiny model."""
