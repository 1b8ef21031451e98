// Package examples_test holds the documents to the code that they show.
package examples_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestShownExample compares the compiled example of the package with its copies in the documents.
func TestShownExample(t *testing.T) {
	example := read(t, "../example_test.go")
	_, body, ok := strings.Cut(example, "func Example() {\n")
	if !ok {
		t.Fatal("no Example in example_test.go")
	}
	body = strings.TrimSuffix(body, "}\n")
	if lines := strings.Count(example, "\n"); lines > 60 {
		t.Errorf("the example has %d lines, which is more than 60", lines)
	}
	for _, doc := range []struct{ file, indent string }{
		{"../README.md", ""},
		{"../gateway.go", "//\t"},
	} {
		var want strings.Builder
		for line := range strings.Lines(body) {
			line = strings.TrimPrefix(line, "\t")
			if line != "\n" {
				want.WriteString(doc.indent)
			} else {
				want.WriteString(strings.TrimSpace(doc.indent))
			}
			want.WriteString(line)
		}
		if !strings.Contains(read(t, doc.file), want.String()) {
			t.Errorf("%s does not show the example as it is in example_test.go", doc.file)
		}
	}
}

// TestWorksWith compares the README's table "works with" with the programs in examples/with: each has one
// link.
func TestWorksWith(t *testing.T) {
	readme := read(t, "../README.md")
	programs, err := filepath.Glob("with/*/main.go")
	if err != nil || len(programs) == 0 {
		t.Fatal("no programs in examples/with: ", err)
	}
	for _, program := range programs {
		dir := filepath.ToSlash(filepath.Dir(program))
		if n := strings.Count(readme, "](examples/"+dir+")"); n != 1 {
			t.Errorf("README.md links examples/%s %d times; want once", dir, n)
		}
		if tests, err := filepath.Glob(dir + "/*_test.go"); err != nil || len(tests) == 0 {
			t.Errorf("examples/%s has no test: %v", dir, err)
		}
	}
	if n := strings.Count(readme, "](examples/with/"); n != len(programs) {
		t.Errorf("README.md links %d programs of examples/with; there are %d", n, len(programs))
	}
	if n := strings.Count(readme, "\n"); n > 150 {
		t.Errorf("README.md has %d lines; want at most 150", n)
	}
}

// TestLinks follows the links of the documents to files of this repository.
func TestLinks(t *testing.T) {
	links := regexp.MustCompile(`\]\(([^):#]+)[#)]`)
	for _, doc := range []string{"../README.md", "../docs/recipes.md"} {
		for _, link := range links.FindAllStringSubmatch(read(t, doc), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), link[1])); err != nil {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
