use serde_json::json;

use super::value::{Nil, field, optional};
use super::*;

/// By a template, with a struct at the top, as commands have it.
fn rendered(template: &str, value: &serde_json::Value) -> Result<String, String> {
    Template::parse(template).and_then(|template| template.render(&Value::structure(value)))
}

#[test]
fn templates_are_rendered_as_go_does() {
    let value = json!({
        "Id": "sha256:abcdef", "Size": 7, "Float": 1.5, "Yes": true, "No": false, "Empty": "", "Tags": null,
        "List": ["a", "b c", "d"], "None": [],
        "Config": {"Cmd": ["a", "b c"], "Labels": {"b": "2", "a": "1"}, "Env": ["A=1", "B=2"]},
        "Layers": [{"n": 1, "d": "x"}, {"n": 2, "d": "y"}],
    });
    for (template, expected) in [
        ("", ""),
        ("plain", "plain"),
        ("{{.Id}}", "sha256:abcdef"),
        ("{{ .Id }}:{{.Size}}!", "sha256:abcdef:7!"),
        ("{{.Config.Cmd}}", "[a b c]"),
        ("{{json .Config.Cmd}}", r#"["a","b c"]"#),
        ("{{.Config.Cmd | json}}", r#"["a","b c"]"#),
        ("{{.Config.Labels}}", "map[a:1 b:2]"),
        ("{{.Config.Labels.a}}", "1"),
        ("{{.Config.User}}", "<no value>"),
        ("{{json .Config.User}}", "null"),
        ("{{.Config.User.Deeper}}", "<no value>"),
        ("{{json .Tags}}", "null"),
        ("{{json .}}", &value.to_string()),
        ("{{ \"a\\tb\\u00e9\\\"\" }}", "a\tbé\""),
        ("{{`raw \\n`}}{{\"}}\"}}", "raw \\n}}"),
        ("{{1}} {{-2}} {{1.5}} {{0x10}} {{true}}", "1 -2 1.5 16 true"),
        ("{{1e6}} {{1.0}} {{123456.5}} {{0.00001}} {{2.5e-7}}", "1e+06 1 123456.5 1e-05 2.5e-07"),
        ("{{0b11}} {{0o17}} {{017}} {{-0x1F}} {{1_000}} {{+5}}", "3 15 15 -31 1000 5"),
        ("{{'a'}} {{'\\n'}} {{'\\''}} {{'é'}}", "97 10 39 233"),
        ("{{join .List \"\\n\"}}|{{printf \"%s\\t\" .Id}}a\\tb\\n", "a\nb c\nd|sha256:abcdef\ta\\tb\\n"),
        ("{{range .List}}{{if eq . \"d\"}}{{break}}{{end}}{{if eq . \"a\"}}{{continue}}{{end}}<{{.}}>{{end}}", "<b c>"),
        ("{{range .List}}{{range $.None}}{{else}}{{continue}}{{end}}x{{end}}-", "-"),
        ("{{js \"a'b<c>\\n\"}} {{urlquery \"a b&c/ü\"}}", "a\\'b\\u003Cc\\u003E\\u000A a+b%26c%2F%C3%BC"),
        ("{{printf \"%c%c %U %q\" 'a' 98 233 'x'}}", "ab U+00E9 'x'"),
        (
            "{{printf \"%T %T %T %T %T %T\" 1 1.5 true \"\" .List .Config.Labels}}",
            "int float64 bool string []string map[string]string",
        ),
        ("{{printf \"%[2]d %[1]d %d\" 1 2}} {{printf \"%[3]d\" 1}}", "2 1 2 %!d(BADINDEX)"),
        ("{{printf \"%*d|%-*d|%.*s\" 4 1 3 2 2 \"abc\"}} {{printf \"%*d\" \"x\" 1}}", "   1|2  |ab %!(BADWIDTH)1"),
        ("{{printf \"%q %5s|\" .List .None}}", "[\"a\" \"b c\" \"d\"] []|"),
        ("{{printf \"%q\" \"a\\x00\\t\"}}", "\"a\\x00\\t\""),
        ("{{printf \"%999999999d!\" 1}}", "%!(NOVERB)%!(EXTRA int=1)"),
        ("a  {{- .Size -}}  b", "a7b"),
        ("a {{- /* a comment }} */ -}} b", "ab"),
        ("a{{/* c */}} b", "a b"),
        ("{{if .Yes}}y{{else}}n{{end}}{{if .No}}y{{else}}n{{end}}", "yn"),
        ("{{if .Empty}}1{{else if .None}}2{{else if .Size}}3{{else}}4{{end}}", "3"),
        ("{{if .Tags}}1{{end}}-", "-"),
        ("{{with .Config}}{{.Cmd}}{{end}}", "[a b c]"),
        ("{{with .Tags}}x{{else}}none{{end}}", "none"),
        ("{{with $c := .Config.Labels}}{{$c.a}}{{.b}}{{end}}", "12"),
        ("{{range .List}}<{{.}}>{{end}}", "<a><b c><d>"),
        ("{{range $i, $v := .List}}{{if $i}}, {{end}}{{$i}}={{$v}}{{end}}", "0=a, 1=b c, 2=d"),
        ("{{range $v := .List}}{{$v}}{{end}}", "ab cd"),
        ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "a=1;b=2;"),
        ("{{range .None}}x{{else}}empty{{end}}", "empty"),
        ("{{range .Tags}}x{{end}}", ""),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ("{{range .Layers}}{{.n}}{{.d}}{{.missing}}{{$.Size}} {{end}}", "1x<no value>7 2y<no value>7 "),
        ("{{$x := .Size}}{{range .List}}{{$x = .}}{{end}}{{$x}}", "d"),
        ("{{$x := 1}}{{if .Yes}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "21"),
        ("{{index .List 1}}", "b c"),
        ("{{index .Config.Labels \"a\"}}{{index .Config.Labels \"none\"}}", "1"),
        ("{{index .Layers 1 \"d\"}}", "y"),
        ("{{(index .Layers 0).d}}", "x"),
        ("{{slice .Id 7}} {{slice .Id 0 6}} {{slice .List 1 2}}", "abcdef sha256 [b c]"),
        ("{{len .List}}{{len .Id}}{{len .Config.Labels}}{{len .Tags}}", "31320"),
        ("{{join .List \", \"}}", "a, b c, d"),
        ("{{join (split \"a,b\" \",\") \"-\"}}", "a-b"),
        ("{{range .Config.Env}}{{index (split . \"=\") 0}} {{end}}", "A B "),
        ("{{upper .Id}}{{\"XY\" | lower}}{{title \"a b-c\"}}", "SHA256:ABCDEFxyA B-C"),
        ("[{{pad .Id 1 2}}]{{pad \"\" 1 2}}", "[ sha256:abcdef  ]"),
        ("{{truncate .Id 6}}", "sha256"),
        ("{{print 1 2 \"a\" 3}}|{{println 1 \"a\"}}", "1 2a3|1 a\n"),
        ("{{printf \"%s-%d-%v-%q\" .Empty .Size .List \"x\"}}", "-7-[a b c d]-\"x\""),
        ("{{printf \"%5d|%-5d|%05d|%x|%.2f|%t|%%\" 42 42 42 255 1.5 true}}", "   42|42   |00042|ff|1.50|true|%"),
        ("{{printf \"%10.3s|%-6s|\" \"abcdef\" \"ab\"}}", "       abc|ab    |"),
        ("{{printf \"%d\" \"x\"}} {{printf \"%s\"}} {{printf \"\" 1}}", "%!d(string=x) %!s(MISSING) %!(EXTRA int=1)"),
        ("{{.Size | printf \"%03d\"}}", "007"),
        ("{{eq .Size 7}}{{eq .Id \"a\" \"sha256:abcdef\"}}{{ne .Size 7}}{{eq .Float 1.5}}", "truetruefalsetrue"),
        ("{{eq .Config.User \"\"}}{{eq .Tags nil}}", "truetrue"),
        ("{{lt 1 2}}{{le 2 2}}{{gt 1 2}}{{ge \"b\" \"a\"}}", "truetruefalsetrue"),
        ("{{and .Yes .Size}}{{or .No .Empty \"x\"}}{{not .No}}", "7xtrue"),
        ("{{and .No (index .None 5)}}", "false"),
        ("{{if and (eq .Size 7) (not .No)}}both{{end}}", "both"),
        ("{{if or .No (gt (len .List) 2)}}long{{end}}", "long"),
        ("{{html \"<a>\"}}", "&lt;a&gt;"),
        ("{{.List | len | printf \"%d items\"}}", "3 items"),
        ("{{(print .Size)}}{{((7))}}", "77"),
    ] {
        assert_eq!(rendered(template, &value).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn structs_have_their_fields_and_print_as_gos() {
    let check =
        vec![field("Test", Value::List(vec!["CMD".into()])), field("Interval", Value::Duration(90_000_000_000))];
    let inner = Value::from(vec![
        optional("User", ""),
        optional("Ports", Value::Map(vec![("80/tcp".to_owned(), Value::Struct(Vec::new()))])),
        optional("Entrypoint", Value::Nil(Nil::List)),
        optional("Labels", Value::Nil(Nil::Map)),
        optional("Flag", false),
    ]);
    let extra = Value::from(vec![optional("Healthcheck", Value::Nil(Nil::Pointer)), optional("Check", check)]);
    let value = Value::from(vec![field("Config", vec![field("", inner), field("", extra)])]);
    for (template, expected) in [
        ("{{.Config.User}}|{{.Config.Entrypoint}}|{{.Config.Labels}}|{{.Config.Labels.nope}}", "|[]|map[]|<no value>"),
        ("{{.Config.Ports}} {{len .Config.Entrypoint}} {{join .Config.Entrypoint \",\"}}", "map[80/tcp:{}] 0 "),
        ("{{.Config.Healthcheck}} {{if .Config.Healthcheck}}1{{else}}2{{end}}", "<nil> 2"),
        ("{{.Config}}", "{{ map[80/tcp:{}] [] map[] false} {<nil> {[CMD] 1m30s}}}"),
        ("{{json .Config}}", r#"{"Ports":{"80/tcp":{}},"Check":{"Test":["CMD"],"Interval":90000000000}}"#),
        ("{{json .Config.User}}{{json .Config.Entrypoint}}{{json .Config.Healthcheck}}", "\"\"nullnull"),
        ("{{printf \"%+v %d\" .Config.Check .Config.Check.Interval}}", "{Test:[CMD] Interval:1m30s} 90000000000"),
        ("{{index .Config.Labels \"a\"}}{{range $k, $v := .Config.Labels}}x{{end}}", ""),
    ] {
        let found = Template::parse(template).and_then(|template| template.render(&value));
        assert_eq!(found.as_deref(), Ok(expected), "{template}");
    }
    for (template, expected) in [
        ("{{.Config.Nope}}", "there is no field .Nope; there are .User, .Ports, "),
        ("{{.Config.Lables}}", "there is no field .Lables; did you mean .Labels?"),
        ("{{.Config.Healthcheck.Test}}", "nothing has no field .Test"),
    ] {
        let error = Template::parse(template).and_then(|template| template.render(&value)).unwrap_err();
        assert!(error.contains(expected), "{template}: {error}");
    }
}

#[test]
fn lengths_of_time_are_gos() {
    for (time, expected) in [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (2_000_000, "2ms"),
        (1_001_000_000, "1.001s"),
        (60_000_000_000, "1m0s"),
        (3_661_500_000_000, "1h1m1.5s"),
        (-30_000_000_000, "-30s"),
    ] {
        let found = Template::parse("{{.}}").unwrap().render(&Value::Duration(time));
        assert_eq!(found.as_deref(), Ok(expected), "{time}");
    }
}

#[test]
fn of_rows_the_text_is_unescaped_and_titles_stay() {
    let row = Value::structure(&json!({"ID": "abcdef", "Tag": "x"}));
    for (template, expected, titles) in [
        ("{{.ID}}\\t{{.Tag}}\\n", "abcdef\tx\n", "IMAGE ID\tTAG\n"),
        ("{{print \"a\\tb\"}}", "a\tb", "a\tb"),
        ("a\\n{{- .ID -}} \\n b", "aabcdefb", "aIMAGE IDb"),
        ("{{truncate .ID 3}} {{json .Tag}} {{lower .ID}}", "abc \"x\" abcdef", "IMAGE ID TAG IMAGE ID"),
    ] {
        let template = Template::of_rows(template).unwrap();
        assert_eq!(template.render(&row).as_deref(), Ok(expected));
        let heading = Value::structure(&json!({"ID": "IMAGE ID", "Tag": "TAG"}));
        assert_eq!(template.render_titles(&heading).as_deref(), Ok(titles));
    }
}

#[test]
fn mistakes_are_told_with_their_place() {
    let value = json!({"Id": "x", "Size": 7, "List": [], "Config": {}});
    for (template, expected) in [
        ("{{.Ids}}", "there is no field .Ids; did you mean .Id?\n  {{.Ids}}\n    ^"),
        ("{{.Nothing}}", "there are .Id, .Size, .List, .Config"),
        ("{{range .Config}}{{end}}{{$.Nothing}}", "there are .Id"),
        ("{{.Id.x}}", "a text has no field .x"),
        ("a {{.Id", "{{ is not closed\n  a {{.Id\n    ^"),
        ("{{Id}}", "there is no function Id; a field is written .Id"),
        ("{{jsn .Id}}", "there is no function jsn; did you mean json?"),
        ("{{.Id | .Size}}", "after a | comes a function"),
        ("{{.Id .Size}}", "only a function takes arguments"),
        ("{{}}", "there is nothing to print"),
        ("{{.Id |}}", "there is nothing to print"),
        ("{{(.Id}}", "a ( without its )"),
        ("{{.Id)}}", "a ) without its ("),
        ("{{if .Id}}x", "there is no {{end}} to this"),
        ("{{end}}", "{{end}} ends nothing"),
        ("{{else}}", "{{else}} ends nothing"),
        ("{{if .Id}}{{else}}{{else}}{{end}}", "an {{else}} too many"),
        ("{{if .Id}}{{else range .Id}}{{end}}{{end}}", "only if may follow this else"),
        ("{{if}}x{{end}}", "there is nothing to print"),
        ("{{$x}}", "there is no variable $x"),
        ("{{$x = 1}}", "there is no variable $x; := makes one"),
        ("{{range .List}}{{$x := 1}}{{end}}{{$x}}", "there is no variable $x"),
        ("{{\"open}}", "the string is not closed"),
        ("{{\"\\z\"}}", "\\z means nothing in a string"),
        ("{{1x}}", "1x is no number"),
        ("{{.a..b}}", "only a function takes arguments"),
        ("{{#}}", "# means nothing here"),
        ("{{/* open}}", "the comment is not closed"),
        ("{{len}}", "len takes 1 arguments, not 0"),
        ("{{len .Size}}", "len: a number has no length"),
        ("{{index .List 0}}", "index: there is no item 0 in a list of 0"),
        ("{{eq .List .List}}", "cannot be compared"),
        ("{{eq .Id 1}}", "a text and a number cannot be compared"),
        ("{{lt .Id 1}}", "have no order"),
        ("{{range .Id}}{{end}}", "range goes over a list, not a text"),
        ("{{template \"x\"}}", "not supported yet: {{template}}"),
        ("{{define \"x\"}}{{end}}", "not supported yet: {{define}}"),
        ("{{if .Id}}{{break}}{{end}}", "{{break}} is not in a {{range}}"),
        ("{{range .List}}{{else}}{{continue}}{{end}}", "{{continue}} is not in a {{range}}"),
        ("{{'ab'}}", "a letter is written such as 'a'"),
        ("{{'", "a letter is written such as 'a'"),
        ("{{0x}}", "0x is no number"),
        ("{{0b2}}", "0b2 is no number"),
        ("a\n{{.Ids}}", "did you mean .Id? (line 2 of the template)"),
    ] {
        let error = rendered(template, &value).unwrap_err();
        assert!(error.contains(expected), "{template}: {error}");
    }
}

#[test]
fn hostile_templates_end() {
    let deep = format!("{}1{}", "{{if 1}}".repeat(5000), "{{end}}".repeat(5000));
    assert!(Template::parse(&deep).unwrap_err().contains("levels of nesting"));
    let parens = format!("{{{{{}1{}}}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(Template::parse(&parens).unwrap_err().contains("levels of nesting"));
    let wide = "{{range 1000000}}{{range 1000000}}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{{end}}{{end}}";
    assert!(rendered(wide, &json!({})).unwrap_err().contains("more than 64 MiB"));
    for text in ["{{printf \"%999999999d\" 1}}", "{{", "{{-", "{{- -}}", "{{é}}", "{{.é}}", "{{$é}}", "{{- }}x"] {
        let _ = rendered(text, &json!({}));
    }
    let wide = "{{printf \"%1000000v\" .}}";
    let many = json!((0..1000).collect::<Vec<_>>());
    let found = Template::parse(wide).and_then(|template| template.render(&Value::from(&many)));
    assert!(found.is_err() || found.is_ok_and(|text| text.len() < 80 << 20));
}

mod any {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_panics(text in "(\\{\\{[-. a-z$|()\"`:=0-9%]{0,12}\\}\\}|[a-z {}]){0,6}") {
            let _ = rendered(&text, &json!({"a": [1, "b"], "c": {"d": null}}));
        }
    }
}
