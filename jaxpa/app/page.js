// What the server refuses before it reaches the page's own functions: said where everything else is said.
addEventListener("unhandledrejection", (event) => {
  const text = String(event.reason?.message ?? event.reason);
  if (!text.includes("File size exceeded")) return;
  event.preventDefault();
  const said = document.querySelector(".jaxpa-said") ?? document.body.appendChild(document.createElement("div"));
  said.className = "jaxpa-said";
  said.setAttribute("role", "alert");
  said.textContent = "The file is larger than this page takes: scale the picture down, or start it with --max-upload.";
  clearTimeout(said.timer);
  said.timer = setTimeout(() => said.remove(), 8000);
});
