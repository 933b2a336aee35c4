"""Files called train.py that differ in how they are written down, and whether the interpreter runs them.

Every program that reads a train.py is tested with the same table: controller, trainer and worker.
"""

from __future__ import annotations

import codecs

MODEL = "def build_model(): ...\nNAME = 'Größe'\n"
PLAIN = MODEL.encode()
MARK = codecs.BOM_UTF8

RUNS = {
    "plain": PLAIN,
    "mark": MARK + PLAIN,
    "mark and declaration": MARK + b"# coding: utf-8\n" + PLAIN,
    "declared utf-8-sig": b"# coding: utf-8-sig\n" + PLAIN,
    "latin-1": b"# -*- coding: latin-1 -*-\n" + MODEL.encode("latin-1"),
    "latin-1, said in latin-1": "# coding: latin-1, für Müller\n".encode("latin-1") + MODEL.encode("latin-1"),
    "latin-1 in line two": b"#!/usr/bin/env python\n# coding=iso-8859-1\n" + MODEL.encode("latin-1"),
    "latin-1 behind an empty line": b"\n# coding: Latin_1-unix\n" + MODEL.encode("latin-1"),
    "latin-1 and lone returns": b"# x\r# coding: latin-1\r" + MODEL.replace("\n", "\r").encode("latin-1"),
    "cp1252 with a dash of its own": b"# vim: set fileencoding=cp1252 :\n" + MODEL.encode() + b"# \x96\n",
    "shift-jis": "# coding: shift_jis\ndef build_model(): ...\nNAME = '学習'\n".encode("shift_jis"),
    "a declaration that comes too late": b"\n\n# coding: latin-1\n" + PLAIN,
    "a declaration behind a statement": b"A = 1\n# coding: latin-1\n" + PLAIN,
    "a declaration in a string": b"A = 'coding: latin-1'\n" + PLAIN,
    "return and newline": PLAIN.replace(b"\n", b"\r\n"),
    "lone returns": PLAIN.replace(b"\n", b"\r"),
    "all three": b"def build_model(): ...\r\nA = '''a\rb\nc\r\nd'''\nNAME = 'Gr\xc3\xb6\xc3\x9fe'\r",
    "no text in a comment": b"# coding: utf-8\n# f\xfcr M\xfcller\n" + PLAIN,
    "no text in a comment behind a mark": MARK + b"# f\xfcr M\xfcller\n" + PLAIN,
    "form feeds": b"\x0c" + PLAIN.replace(b"\n", b"\n\x0c"),
    "no last newline": PLAIN.rstrip(),
    "a separator inside a string": MODEL.encode() + "S = 'a\u2028b\x0bc\x85d'\n".encode(),
}

FAILS = {
    "not UTF-8": MODEL.encode("latin-1"),
    "no text in a string": b"# coding: utf-8\nA = 'M\xfcller'\n" + PLAIN,
    "an encoding that does not exist": b"# coding: no-such-thing\n" + PLAIN,
    "no encoding of text": b"# coding: rot13\n" + PLAIN,
    "mark and another declaration": MARK + b"# coding: latin-1\n" + PLAIN,
    "two marks": MARK + MARK + PLAIN,
    "a mark further on": PLAIN + MARK + PLAIN,
    "NUL": PLAIN + b"A = 'a\x00b'\n",
    "UTF-16": codecs.BOM_UTF16_LE + MODEL.encode("utf-16-le"),
    "UTF-16 without a mark": MODEL.encode("utf-16-le"),
    "UTF-32": codecs.BOM_UTF32_LE + MODEL.encode("utf-32-le"),
    "declared ascii": b"# coding: ascii\n" + PLAIN,
    "a surrogate": b"A = '\xed\xa0\x80'\n" + PLAIN,
}
