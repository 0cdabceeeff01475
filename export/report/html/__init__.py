"""report.html: one self-contained page about an artifact folder, made of its JSON files alone.

```
page       what the page says, from report.json, pictures.json, engine.json and bench.json; render()
blocks     one attention as the page's drawer shows it
matrix     parity, case by stage
layout     where the nodes of a drawing go
*.j2 *.css *.js   how it looks
```
"""

from export.report.html.page import NAME, render, write

__all__ = ["NAME", "render", "write"]
