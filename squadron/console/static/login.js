// The form that takes the token, for who did not come by the link.
const form = document.getElementById("login");
const said = document.getElementById("said");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  said.textContent = "";
  const answer = await fetch("/login", {
    method: "POST",
    headers: { "content-type": "text/plain", "x-squadron-console": "1" },
    body: document.getElementById("token").value,
  });
  if (answer.ok) location.replace("/");
  else said.textContent = (await answer.json()).error.message;
});
