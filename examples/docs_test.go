// Package examples_test holds the documents to the code that they show.
package examples_test

import (
	"os"
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

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
