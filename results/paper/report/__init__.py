"""One HTML file with everything: `lab report FOLDER --out report.html`."""
