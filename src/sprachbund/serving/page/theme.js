// Runs before anything is drawn, so that the page never flashes in the wrong colours.
try {
  document.documentElement.dataset.theme = localStorage.getItem("theme") || "auto";
} catch {
  // storage may be closed to us; the system's colours are used
}
