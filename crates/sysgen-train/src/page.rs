//! What every HTML page of the program shares: one file without a network, light and dark, from a phone to a wide screen.

/// Colours by role; the second set is for dark screens.
const STYLE: &str = "\
:root{--paper:#fbfbf9;--card:#fff;--ink:#1d2126;--faint:#667079;--line:#d9dde1;--good:#1a7f4b;--bad:#b3261e;--note:#8a5a00;\
--learnt:#d5f0de;--one:#1f6feb;--two:#c2410c}\
@media(prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1c2024;--ink:#e6e8ea;--faint:#98a2ab;--line:#343a40;\
--good:#5fd394;--bad:#ff8a80;--note:#e8b44c;--learnt:#1d4a33;--one:#6ea8ff;--two:#ff9d5c}}\
*{box-sizing:border-box}body{margin:0 auto;max-width:72rem;padding:1rem;background:var(--paper);color:var(--ink);\
font:16px/1.5 system-ui,sans-serif}h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.1rem;margin:2rem 0 .5rem}\
.faint,caption,th{color:var(--faint)}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}\
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--line);\
overflow-wrap:anywhere}th{font-weight:500}td.number{text-align:right;font-variant-numeric:tabular-nums}\
.passed{color:var(--good)}.refused{color:var(--bad)}.note{color:var(--note)}\
.card{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.75rem;margin:.75rem 0}\
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.25rem 0;font:.85rem/1.5 ui-monospace,monospace}\
mark{background:var(--learnt);color:var(--ink);border-radius:.2rem}svg{width:100%;height:auto;display:block}\
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:.75rem}.curves .card{margin:0}\
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.5rem;margin:0}\
dt{color:var(--faint);font-size:.85rem}dd{margin:0;font-size:1.15rem;overflow-wrap:anywhere}\
@media(max-width:40rem){svg text{font-size:15px}table.gates thead{display:none}\
table.gates td{display:block;border:0;padding:.1rem 0}table.gates td:empty{display:none}\
table.gates tr{display:block;border-bottom:1px solid var(--line);padding:.5rem 0}}";

/// A whole page around `body`.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n{body}\n</body>\n</html>\n",
        escape(title)
    )
}

/// Text as HTML shows it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
