"""Work on Python's own library for ci/size-classes.sh: imports, syntax trees, byte code, JSON, regular expressions."""

import ast
import importlib
import json
import pathlib
import re
import sys
import sysconfig

# Those that open windows, print, or start something.
LEFT_OUT = {"antigravity", "this", "idlelib", "lib2to3", "test", "tkinter", "turtle", "turtledemo", "__main__"}

for name in sorted(sys.stdlib_module_names - LEFT_OUT):
    if not name.startswith("_"):
        try:
            importlib.import_module(name)
        except ImportError:
            pass

library = pathlib.Path(sysconfig.get_path("stdlib"))
code, words, trees = [], {}, []
for path in sorted(library.glob("*.py"))[:80]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    code.append(compile(tree, path.name, "exec"))
    trees.append(ast.dump(tree))
    for number, line in enumerate(text.splitlines()):
        for word in re.findall(r"\w+", line):
            words.setdefault(word, []).append((path.name, number))

dumped = json.dumps(words)
assert len(json.loads(dumped)) == len(words)
