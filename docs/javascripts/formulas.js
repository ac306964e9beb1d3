// Formulas by the copy of KaTeX in assets/katex: no other host is asked, so pages read well without a network.
document$.subscribe(({ body }) => {
  for (const place of body.querySelectorAll(".arithmatex")) {
    const source = place.textContent.trim();
    const display = source.startsWith("\\[");
    if (!display && !source.startsWith("\\(")) continue; // typeset before
    katex.render(source.slice(2, -2), place, { displayMode: display, throwOnError: false });
  }
});
