// Applies the saved theme before the page is drawn, so that the other one never flashes.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // No access to storage: the page follows the system.
}
