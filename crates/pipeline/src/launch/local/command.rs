//! What a container's command asks for: packages that it would install, and the program behind them.
//!
//! The `kfp` SDK wraps each lightweight Python component in a shell script that installs packages with `pip`, and then in one that writes
//! the component's code to a file and executes it. A script is only replaced if every command in it is understood; any other is executed
//! as it is.

/// The command of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// Arguments of each `pip install`, in order, without those that only concern its output.
    pub(crate) installs: Vec<Vec<String>>,
    /// What is executed after the installations.
    pub(crate) program: Program,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Program {
    /// A lightweight Python component: the code of its module, and the arguments of `kfp.dsl.executor_main`.
    Lightweight { code: String, arguments: Vec<String> },
    /// A program and its arguments.
    Words(Vec<String>),
}

/// The script with which the SDK executes a lightweight component, with single spaces.
const EXECUTE_SCRIPT: &str = "program_path=$(mktemp -d) printf \"%s\" \"$0\" > \"$program_path/ephemeral_component.py\" \
     _KFP_RUNTIME=true python3 -m kfp.dsl.executor_main --component_module_path \
     \"$program_path/ephemeral_component.py\" \"$@\"";

/// Options of `pip install` that only concern its output.
const QUIET_OPTIONS: &[&str] = &["--quiet", "-q", "--no-warn-script-location", "--disable-pip-version-check"];
/// Options of `pip install` whose value is the next argument.
const OPTIONS_WITH_VALUES: &[&str] = &[
    "--index-url",
    "-i",
    "--extra-index-url",
    "--trusted-host",
    "--find-links",
    "-f",
    "--constraint",
    "-c",
    "--target",
    "-t",
];

impl Command {
    pub(crate) fn new(words: Vec<String>) -> Self {
        let (installs, words) = match unwrap_installs(&words) {
            Some(installs) => (installs, words[3..].to_vec()),
            None => (Vec::new(), words),
        };
        let program = match words.as_slice() {
            [shell, option, script, code, arguments @ ..]
                if is_shell(shell) && option == "-ec" && single_spaced(script) == EXECUTE_SCRIPT =>
            {
                Program::Lightweight { code: code.clone(), arguments: arguments.to_vec() }
            }
            _ => Program::Words(words),
        };
        Self { installs, program }
    }

    /// The packages among the arguments of the installations.
    pub(crate) fn requirements(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for arguments in &self.installs {
            let mut is_value = false;
            for argument in arguments {
                if !is_value && !argument.starts_with('-') && !found.contains(argument) {
                    found.push(argument.clone());
                }
                is_value = OPTIONS_WITH_VALUES.contains(&argument.as_str());
            }
        }
        found
    }
}

fn is_shell(word: &str) -> bool {
    matches!(word, "sh" | "bash" | "/bin/sh" | "/bin/bash")
}

fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The installations of a script `sh -c '... pip install ... && "$0" "$@"' PROGRAM ...`; `None` if the words are not such a script, or if
/// it does anything else.
fn unwrap_installs(words: &[String]) -> Option<Vec<Vec<String>>> {
    let [shell, option, script, _, ..] = words else { return None };
    if !is_shell(shell) || !matches!(option.as_str(), "-c" | "-ec") {
        return None;
    }
    let script = script.trim_end().strip_suffix("\"$0\" \"$@\"")?;
    let mut installs = Vec::new();
    for Simple { words, after } in commands(script)? {
        // Commands after `||` are alternatives for a failed installation.
        if after != "||" && !is_preparation(&words) {
            installs.push(pip_install(&words)?);
        }
    }
    (!installs.is_empty()).then_some(installs)
}

/// Whether a command only provides `pip` or a virtual environment, which every environment here has.
fn is_preparation(words: &[Word]) -> bool {
    let texts: Vec<&str> = words.iter().map(|w| w.text.as_str()).collect();
    match texts.as_slice() {
        ["if", "!", "[", "-x", ..] | ["then"] | ["fi"] | ["export", _] | [".", _] => true,
        ["python3" | "python", "-m", "ensurepip" | "venv", ..] => true,
        [assignment] => assignment.starts_with("tmp="),
        _ => false,
    }
}

/// The arguments of a `pip install`, or `None` for any other command.
fn pip_install(words: &[Word]) -> Option<Vec<String>> {
    let assignments = words.iter().take_while(|w| !w.is_quoted && is_assignment(&w.text)).count();
    let words = &words[assignments..];
    let texts: Vec<&str> = words.iter().map(|w| w.text.as_str()).collect();
    let skipped = match texts.as_slice() {
        ["python3" | "python", "-m", "pip", "install", ..] => 4,
        ["pip" | "pip3", "install", ..] => 2,
        _ => return None,
    };
    let arguments = &words[skipped..];
    if arguments.iter().any(|w| w.is_expanded) {
        return None;
    }
    let texts = arguments.iter().map(|w| w.text.clone());
    Some(texts.filter(|text| !QUIET_OPTIONS.contains(&text.as_str())).collect())
}

fn is_assignment(text: &str) -> bool {
    text.split_once('=')
        .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

#[derive(Debug, PartialEq, Eq)]
struct Word {
    text: String,
    /// Whether the shell would replace a part of it.
    is_expanded: bool,
    /// Whether a part of it is in quotation marks.
    is_quoted: bool,
}

/// A simple command, and the operator before it.
struct Simple {
    words: Vec<Word>,
    after: &'static str,
}

/// Splits a script into simple commands; `None` if it uses syntax that is not supported here, such as redirections.
fn commands(script: &str) -> Option<Vec<Simple>> {
    let mut found = Vec::new();
    let (mut words, mut after) = (Vec::new(), ";");
    let mut chars = script.chars().peekable();
    let mut end = |words: &mut Vec<Word>, after: &mut &'static str, next: &'static str| {
        if !words.is_empty() {
            found.push(Simple { words: std::mem::take(words), after });
            *after = next;
        } else if next != ";" {
            *after = next;
        }
    };
    while let Some(&c) = chars.peek() {
        match c {
            '\n' | ';' => {
                chars.next();
                end(&mut words, &mut after, ";");
            }
            c if c.is_whitespace() => {
                chars.next();
            }
            '(' | ')' => {
                chars.next();
                end(&mut words, &mut after, ";");
            }
            '&' | '|' => {
                chars.next();
                if chars.next() != Some(c) {
                    return None;
                }
                end(&mut words, &mut after, if c == '&' { "&&" } else { "||" });
            }
            '<' | '>' | '`' | '#' => return None,
            _ => words.push(word(&mut chars)?),
        }
    }
    end(&mut words, &mut after, ";");
    Some(found)
}

fn word(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Word> {
    let mut word = Word { text: String::new(), is_expanded: false, is_quoted: false };
    // Depth of `$(...)`, whose content belongs to the word.
    let mut depth = 0_u32;
    while let Some(&c) = chars.peek() {
        if depth == 0 && (c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')' | '<' | '>')) {
            break;
        }
        chars.next();
        match c {
            '\'' => {
                word.is_quoted = true;
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.text.push(c),
                    }
                }
            }
            '"' => {
                word.is_quoted = true;
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' if matches!(chars.peek(), Some('"' | '\\' | '$' | '`')) => word.text.push(chars.next()?),
                        c => {
                            word.is_expanded |= c == '$' || c == '`';
                            word.text.push(c);
                        }
                    }
                }
            }
            '\\' => match chars.next()? {
                '\n' => {}
                c => word.text.push(c),
            },
            '$' => {
                word.is_expanded = true;
                word.text.push(c);
                if chars.peek() == Some(&'(') {
                    chars.next();
                    depth += 1;
                }
            }
            ')' if depth > 0 => depth -= 1,
            '(' => depth += 1,
            '`' => return None,
            '*' | '?' => {
                word.is_expanded = true;
                word.text.push(c);
            }
            c => word.text.push(c),
        }
    }
    Some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    const INSTALL: &str = "\nif ! [ -x \"$(command -v pip)\" ]; then\n    python3 -m ensurepip || python3 -m ensurepip --user || apt-get install python3-pip\nfi\n\nPIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip install --quiet --no-warn-script-location 'scikit-learn'  &&  python3 -m pip install --quiet --no-warn-script-location --index-url https://a/simple --trusted-host 'a' 'kfp==2.14.6' '--no-deps' 'typing-extensions>=3.7.4,<5; python_version<\"3.9\"' && \"$0\" \"$@\"\n";
    const EXECUTE: &str = "program_path=$(mktemp -d)\n\nprintf \"%s\" \"$0\" > \"$program_path/ephemeral_component.py\"\n_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main                         --component_module_path                         \"$program_path/ephemeral_component.py\"                         \"$@\"\n";

    #[test]
    fn lightweight_components_of_the_sdk_are_understood() {
        let command =
            Command::new(words(&["sh", "-c", INSTALL, "sh", "-ec", EXECUTE, "code", "--executor_input", "{}"]));
        let kfp = [
            "--index-url",
            "https://a/simple",
            "--trusted-host",
            "a",
            "kfp==2.14.6",
            "--no-deps",
            "typing-extensions>=3.7.4,<5; python_version<\"3.9\"",
        ];
        assert_eq!(command.installs, vec![words(&["scikit-learn"]), words(&kfp)]);
        let expected = Program::Lightweight { code: "code".into(), arguments: words(&["--executor_input", "{}"]) };
        assert_eq!(command.program, expected);
    }

    #[test]
    fn alternatives_for_failed_installations_are_left_out() {
        let script = "(PIP_X=1 python3 -m pip install --quiet 'xgboost==1.1.1' || PIP_X=1 python3 -m pip install --quiet 'xgboost==1.1.1' --user) && \"$0\" \"$@\"";
        let command = Command::new(words(&["sh", "-c", script, "python3", "-u", "-c", "print(1)"]));
        assert_eq!(command.installs, vec![words(&["xgboost==1.1.1"])]);
        assert_eq!(command.program, Program::Words(words(&["python3", "-u", "-c", "print(1)"])));
    }

    #[test]
    fn installations_into_a_virtual_environment_of_the_step_are_understood() {
        let script = "\nexport PIP_DISABLE_PIP_VERSION_CHECK=1\ntmp=$(mktemp -d)\npython3 -m venv \"$tmp/venv\" --system-site-packages\n. \"$tmp/venv/bin/activate\"\npython3 -m pip install --quiet 'a' && \"$0\" \"$@\"\n";
        assert_eq!(Command::new(words(&["sh", "-c", script, "x"])).installs, vec![words(&["a"])]);
    }

    #[test]
    fn scripts_that_do_anything_else_are_executed_as_they_are() {
        for script in [
            "pip install $PACKAGE && \"$0\" \"$@\"",
            "pip install a > /dev/null && \"$0\" \"$@\"",
            "rm -rf x; pip install a && \"$0\" \"$@\"",
            "pip install a && python3 -c 'import a'",
            "apt-get install -y git && pip install a && \"$0\" \"$@\"",
            "pip install 'a && \"$0\" \"$@\"",
        ] {
            let all = words(&["sh", "-c", script, "python3"]);
            let command = Command::new(all.clone());
            assert!(command.installs.is_empty() && command.program == Program::Words(all), "{script}");
        }
    }
}
