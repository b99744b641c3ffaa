// Runs before anything is painted: the colours that were chosen last time, and no flash of others.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("lowbit.look")).theme;
} catch {
  document.documentElement.dataset.theme = "system";
}
