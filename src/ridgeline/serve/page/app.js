// Joins the two halves; the key lives in this page's memory only.
import { Chat } from "/page/chat.js";
import { watch } from "/page/engine.js";

const key = document.getElementById("key");
const headers = () => (key.value ? { Authorization: `Bearer ${key.value.trim()}` } : {});

new Chat(headers);
watch(headers);
