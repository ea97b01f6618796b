//! The fenced code blocks of a Markdown document.

/// A fenced code block, without the indentation of the list that it stands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The second-level heading above it; empty before the first.
    pub section: String,
    pub language: String,
    /// What its info string says after the language.
    pub mark: String,
    pub text: String,
}

impl Block {
    /// Its last command: from the last line that begins with `curl`.
    pub fn query(&self) -> &str {
        let start = self.text.rfind("\ncurl ").map_or(0, |newline| newline + 1);
        let query = &self.text[start..];
        assert!(query.starts_with("curl "), "a query at the end of\n{}", self.text);
        query
    }

    /// What is pasted to repeat it with the time that it had.
    pub fn with_the_same_now(&self) -> String {
        let (now, others): (Vec<_>, Vec<_>) = self.text.lines().partition(|line| line.starts_with("NOW="));
        assert_eq!(now.len(), 1, "one time in\n{}", self.text);
        others.join("\n")
    }
}

pub fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut section, mut open) = (String::new(), None::<(usize, Block)>);
    for line in document.lines() {
        let trimmed = line.trim_start();
        match (open.take(), trimmed.strip_prefix("```")) {
            (None, Some(info)) => {
                let (language, mark) = info.split_once([',', ' ']).unwrap_or((info, ""));
                let (language, mark) = (language.to_owned(), mark.to_owned());
                let block = Block { section: section.clone(), language, mark, text: String::new() };
                open = Some((line.len() - trimmed.len(), block));
            }
            (None, None) => {
                if let Some(heading) = line.strip_prefix("## ") {
                    heading.clone_into(&mut section);
                }
            }
            (Some((_, block)), Some("")) => blocks.push(block),
            (Some((indentation, mut block)), _) => {
                let spaces = line.len() - trimmed.len();
                block.text.push_str(&line[spaces.min(indentation)..]);
                block.text.push('\n');
                open = Some((indentation, block));
            }
        }
    }
    assert_eq!(open, None, "a code block has no end");
    blocks
}

#[test]
fn blocks_lose_their_list_and_keep_their_own_indentation() {
    let document = "```text\n## no heading\n```\n## One\n1. First:\n\n   ```sh aws-only\n   a 'b\n     c'\n\n   ```\n\n```rust,no_run\n  d\n```\n";
    let block = |section: &str, language: &str, mark: &str, text: &str| Block {
        section: section.to_owned(),
        language: language.to_owned(),
        mark: mark.to_owned(),
        text: text.to_owned(),
    };
    let expected = [
        block("", "text", "", "## no heading\n"),
        block("One", "sh", "aws-only", "a 'b\n  c'\n\n"),
        block("One", "rust", "no_run", "  d\n"),
    ];
    assert_eq!(blocks(document), expected);
}
