"""A worker that the tests can measure; by its options it sleeps, fails at a repetition, or prints where it should not."""

import time

from benchmarks.peers.worker import serve


def prepare(*, sleep=0.0, fail_at=None, blocks=0):
    count = 0
    kept = []

    def repeat():
        nonlocal count
        print("a library that talks")
        if count == fail_at:
            raise RuntimeError("no more")
        count += 1
        time.sleep(sleep)
        kept.append(bytearray(blocks << 20))
        return {"count": count}

    return repeat


if __name__ == "__main__":
    serve(prepare)
