//! The page at `/`: the status, readable in a browser without a script.

use crate::api::{Health, StatusView};
use crate::cli::screen::Screen;
use crate::cli::status_text;

/// The page. Everything that came from outside is escaped.
pub(super) fn html(status: &StatusView) -> String {
    let (colour, health) = match status.health {
        Health::Good => ("#1a7f37", "good"),
        Health::Degraded => ("#9a6700", "degraded"),
        Health::Starting => ("#9a6700", "starting"),
    };
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Selvage on {node}</title>\
         <style>body{{font-family:sans-serif;margin:2rem;color-scheme:light dark}}pre{{overflow-x:auto}}\
         b{{color:{colour}}}</style></head><body><h1>{node}: <b>{health}</b></h1><pre>{text}</pre>\
         <p><a href=\"/metrics\">metrics</a> <a href=\"/readyz\">readiness</a></p></body></html>",
        node = escape(&status.node),
        text = escape(&status_text(&Screen::PLAIN, status)),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_is_markup() {
        assert_eq!(escape("<script>\"&"), "&lt;script&gt;&quot;&amp;");
    }
}
