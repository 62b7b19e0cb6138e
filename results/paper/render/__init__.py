"""Tables and figures as Markdown, LaTeX, CSV, SVG and PNG."""
