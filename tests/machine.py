"""One of the machines of a run, as a process of its own: `python -m tests.machine [--at STEP SIGNAL] train CONFIG ...`.

`--at` sends the process a signal after a step.
"""

import os
import signal
import sys

from mrcnn_tf.quiet import silence_tensorflow


def main(arguments):
    if arguments[0] == "--at":
        act_at(int(arguments[1]), signal.Signals[arguments[2]])
        arguments = arguments[3:]
    from mrcnn_tf.cli import app

    app(arguments)


def act_at(step, number):
    silence_tensorflow()
    from mrcnn_tf import train as train_module
    from mrcnn_tf.callbacks import FiniteLosses

    class Trap(FiniteLosses):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.steps == step:
                os.kill(os.getpid(), number)

    train_module.FiniteLosses = Trap


if __name__ == "__main__":
    main(sys.argv[1:])
