"""Loads extension modules and libraries after the program has started, and passes blocks between their mallocs."""

import ctypes
import hashlib
import importlib
import threading


def loaded():
    """The files of shared libraries that are mapped now."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}


before = loaded()
modules = [importlib.import_module(name) for name in ("sqlite3", "lzma", "bz2", "decimal", "ssl", "curses")]
parser = ctypes.CDLL("libexpat.so.1")
here = ctypes.CDLL(None)
new = loaded() - before
for name in ("_sqlite3.", "_lzma.", "_ssl.", "libsqlite3."):
    assert any(name in file for file in new), f"{name} was not loaded by dlopen"
print("loaded after the start:", ", ".join(sorted(module.__name__ for module in modules)))

here.malloc.restype = here.strdup.restype = here.realloc.restype = ctypes.c_void_p
here.malloc.argtypes = [ctypes.c_size_t]
here.strdup.argtypes = [ctypes.c_char_p]
here.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
here.free.argtypes = [ctypes.c_void_p]


class Suite(ctypes.Structure):
    """expat's table of allocation functions, which its parser then uses."""

    _fields_ = [("malloc", ctypes.c_void_p), ("realloc", ctypes.c_void_p), ("free", ctypes.c_void_p)]


suite = Suite(*(ctypes.cast(function, ctypes.c_void_p).value for function in (here.malloc, here.realloc, here.free)))
parser.XML_ParserCreate_MM.restype = ctypes.c_void_p
parser.XML_ParserCreate_MM.argtypes = [ctypes.c_char_p, ctypes.POINTER(Suite), ctypes.c_char_p]
parser.XML_Parse.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
parser.XML_ParserFree.argtypes = [ctypes.c_void_p]
text = b"<a>" + b"".join(b"<b%d c='%s'/>" % (i, b"d" * (i % 300)) for i in range(5000)) + b"</a>"
for memory in (None, ctypes.byref(suite)):
    machine = parser.XML_ParserCreate_MM(None, memory, None)
    print("parsed:", parser.XML_Parse(machine, text, len(text), 1))
    parser.XML_ParserFree(machine)

# Blocks of the C library, resized and freed by hand.
for size in (1, 15, 16, 17, 1000, 5000, 70000, 3_000_000):
    block = here.realloc(here.strdup(b"x" * size), size * 3)
    assert ctypes.string_at(block) == b"x" * size
    here.free(block)


def work(number, results):
    """A database, compressors and a TLS context in this thread."""
    sqlite3, lzma, bz2, decimal, ssl, _ = modules
    database = sqlite3.connect(":memory:")
    database.execute("create table t (a integer primary key, b text)")
    database.executemany("insert into t (b) values (?)", (("%d " % (i * number) * (i % 40),) for i in range(8000)))
    rows = repr(database.execute("select b, count(*) from t group by b order by b desc").fetchall()).encode()
    database.close()
    ssl.create_default_context()
    digest = hashlib.sha256(lzma.compress(rows) + bz2.compress(rows))
    digest.update(str(decimal.Decimal(number + 2).sqrt(decimal.Context(prec=2000))).encode())
    results[number] = digest.hexdigest()


results = {}
threads = [threading.Thread(target=work, args=(number, results)) for number in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for number in sorted(results):
    print(number, results[number])
