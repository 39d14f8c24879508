"""Loads a memcached at a unix socket from several threads, checks every answer, and prints what all of it came to."""

import hashlib
import random
import socket
import sys
import threading

THREADS = 6
ROUNDS = 3
COMMANDS = 2500


class Connection:
    """The text protocol."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(sys.argv[1])
        self.file = self.socket.makefile("rwb")

    def ask(self, command, body=None):
        self.file.write(command.encode() + b"\r\n" + (b"" if body is None else body + b"\r\n"))
        self.file.flush()
        return self.file.readline().strip()

    def get(self, *keys):
        """The values that there are, by key."""
        values = {}
        answer = self.ask("get " + " ".join(keys))
        while answer != b"END":
            word, key, _, size = answer.split()
            assert word == b"VALUE", answer
            values[key.decode()] = self.file.read(int(size))
            assert self.file.read(2) == b"\r\n"
            answer = self.file.readline().strip()
        return values

    def close(self):
        self.file.close()
        self.socket.close()


def work(number, digests):
    """A thread has keys of its own, so that it knows what it must find; connections come and go."""
    random_numbers = random.Random(number)
    mine, digest = {}, hashlib.sha256()
    for _ in range(ROUNDS):
        others = [Connection() for _ in range(8)]
        connection = Connection()
        for _ in range(COMMANDS):
            key = f"{number}:{random_numbers.randrange(700)}"
            what = random_numbers.randrange(10)
            if what < 4:
                size = random_numbers.choice((10, 100, 1000, 5000, 30000, 900_000) if what == 0 else (10, 100, 1000))
                mine[key] = random_numbers.randbytes(16) * (size // 16 + 1)
                assert connection.ask(f"set {key} 0 0 {len(mine[key])}", mine[key]) == b"STORED"
            elif what == 4:
                assert connection.ask(f"delete {key}") == (b"DELETED" if mine.pop(key, None) else b"NOT_FOUND")
            elif what == 5:
                stored = connection.ask(f"append {key} 0 0 5", b"tail.")
                assert stored == (b"STORED" if key in mine else b"NOT_STORED"), stored
                if key in mine:
                    mine[key] += b"tail."
            elif what == 6:
                assert connection.ask("incr shared 1").isdigit()
            else:
                keys = [f"{number}:{random_numbers.randrange(700)}" for _ in range(random_numbers.choice((1, 1, 5, 40)))]
                values = others[what % 8].get(*keys)
                assert values == {key: mine[key] for key in keys if key in mine}
                for key in sorted(values):
                    digest.update(values[key])
        for each in others:
            each.close()
        connection.close()
    digests[number] = digest.hexdigest()


first = Connection()
assert first.ask("set shared 0 0 1", b"0") == b"STORED"
digests = {}
threads = [threading.Thread(target=work, args=(number, digests)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(digests) == THREADS, "a thread failed"
for number in range(THREADS):
    print(number, digests[number])
print(first.get("shared"))
answer = first.ask("stats")
while answer != b"END":
    _, name, value = answer.decode().split(maxsplit=2)
    if name in ("threads", "cmd_get", "cmd_set", "get_hits", "get_misses", "delete_hits", "incr_hits", "curr_items", "bytes", "evictions"):
        print(name, value)
    answer = first.file.readline().strip()
