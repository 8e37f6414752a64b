"""Training: episodes -> loss -> weights, with checkpoints, a log and pictures of episodes."""
