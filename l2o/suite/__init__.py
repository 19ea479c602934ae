"""Many evaluation tasks, every optimizer on all of them, and what that adds up to."""
