"""Systems measured side by side, each by a worker process of its own (`worker.serve`), in turns (`turns.measure`)."""
