"""Networks that learn in their body, task after task: what each method learns, and what it keeps."""
