// The page asks for itself again every few seconds (htmx). Not while somebody reads it closely: an opened list, a
// marked text or a focused link would be lost; and not while nobody looks.
document.addEventListener("htmx:beforeRequest", (event) => {
  const marked = String(document.getSelection() ?? "");
  if (document.hidden || marked || document.querySelector("main details[open], main :focus")) event.preventDefault();
});
