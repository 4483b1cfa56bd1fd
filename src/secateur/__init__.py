"""secateur prunes pretrained diffusion and flow models and recovers what pruning cost."""
