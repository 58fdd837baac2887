"""What runs inside the Slurm job: the agent, the engine it starts, and the inference API it serves."""
