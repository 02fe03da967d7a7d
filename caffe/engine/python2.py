"""Say what to write today where a layer in Python was written for Python 2 and its libraries, by the exception that it raises."""

import re

MODULES = {
    "cPickle": "import pickle",
    "ConfigParser": "import configparser",
    "HTMLParser": "from html.parser import HTMLParser",
    "Queue": "import queue",
    "StringIO": "from io import StringIO",
    "cStringIO": "from io import StringIO",
    "commands": "import subprocess",
    "urllib2": "import urllib.request",
    "urlparse": "from urllib.parse import urlparse",
}
"""{module of Python 2: what to import today}."""
NAMES = {
    "basestring": "str",
    "execfile": "exec(open(path).read())",
    "long": "int",
    "raw_input": "input",
    "reduce": "functools.reduce",
    "reload": "importlib.reload",
    "unichr": "chr",
    "unicode": "str",
    "xrange": "range",
}
"""{built-in name of Python 2: today's}."""
_METHODS = re.compile(r"'dict' object has no attribute '(has_key|iteritems|iterkeys|itervalues)'")
_TODAY = {"has_key": "key in d", "iteritems": "d.items()", "iterkeys": "d.keys()", "itervalues": "d.values()"}
_DIVIDED = re.compile(r"'float' object cannot be interpreted as an integer|(slice|list|tuple) indices must be integers")
_WORDS = re.compile(
    r"Missing parentheses in call to|multiple exception types must be parenthesized|leading zeros in decimal integer"
)


def advice(error: Exception) -> str:
    """What to write today, as a sentence; "" if the exception does not look like one of Python 2's code."""
    if isinstance(error, TabError):
        name = error.filename
        return f"Python 2 took a tab for up to 8 spaces: write them by `expand -t 8 {name} > new.py && mv new.py {name}`."
    if isinstance(error, SyntaxError):
        old = _WORDS.search(str(error.msg)) or "<>" in (error.text or "")
        return f"This is Python 2: convert it by `2to3 -w {error.filename}` (of Python 3.12 or earlier)." if old else ""
    if isinstance(error, ModuleNotFoundError) and error.name in MODULES:
        return f"The module {error.name} is Python 2's: write `{MODULES[error.name]}`."
    if isinstance(error, NameError) and error.name in NAMES:
        return f"{error.name} is Python 2's: write {NAMES[error.name]}."
    if isinstance(error, AttributeError) and (match := _METHODS.search(str(error))):
        return f"{match[1]} is Python 2's: write `{_TODAY[match[1]]}`."
    if isinstance(error, TypeError) and "argument: 'Loader'" in str(error):
        return "PyYAML takes no file without a loader any more: write `yaml.safe_load(…)`."
    if isinstance(error, TypeError) and _DIVIDED.search(str(error)):
        return "In Python 2, / of integers gave an integer: write //."
    return ""
