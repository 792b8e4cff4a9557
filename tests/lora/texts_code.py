"""Forty good replies in code with their prompts, written for these tests after the thresholds were set."""

# ruff: noqa: E501  (texts stand as they are)

from __future__ import annotations

from .texts_pairs import pairs

GOOD = pairs(r"""
Q: Write a Python function that checks whether a string is a palindrome.
A: def is_palindrome(text: str) -> bool:
    letters = [char.lower() for char in text if char.isalnum()]
    return letters == letters[::-1]

Q: Bubble sort in C
A: void bubble_sort(int *a, int n) {
    for (int i = 0; i < n - 1; i++) {
        for (int j = 0; j < n - 1 - i; j++) {
            if (a[j] > a[j + 1]) {
                int t = a[j];
                a[j] = a[j + 1];
                a[j + 1] = t;
            }
        }
    }
}

Q: SQL: the ten customers with the highest turnover in 2023
A: SELECT c.id, c.name, SUM(o.amount) AS turnover
FROM customers AS c
JOIN orders AS o ON o.customer_id = c.id
WHERE o.ordered_at >= '2023-01-01' AND o.ordered_at < '2024-01-01'
GROUP BY c.id, c.name
ORDER BY turnover DESC
LIMIT 10;

Q: Show a React component with a counter button.
A: import { useState } from "react";

export function Counter() {
  const [count, setCount] = useState(0);
  return (
    <button onClick={() => setCount(count + 1)}>
      Clicked {count} times
    </button>
  );
}

Q: Bash one-liner that deletes all .tmp files older than a week
A: find . -name '*.tmp' -type f -mtime +7 -delete

Q: Write a Dockerfile for a small Flask app.
A: FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
ENV FLASK_APP=app.py
EXPOSE 8000
CMD ["gunicorn", "--bind", "0.0.0.0:8000", "app:app"]

Q: Reverse a linked list in Java.
A: public ListNode reverse(ListNode head) {
    ListNode previous = null;
    while (head != null) {
        ListNode next = head.next;
        head.next = previous;
        previous = head;
        head = next;
    }
    return previous;
}

Q: Print the numbers 1 to 100, but Fizz and Buzz, in Go.
A: package main

import "fmt"

func main() {
	for i := 1; i <= 100; i++ {
		switch {
		case i%15 == 0:
			fmt.Println("FizzBuzz")
		case i%3 == 0:
			fmt.Println("Fizz")
		case i%5 == 0:
			fmt.Println("Buzz")
		default:
			fmt.Println(i)
		}
	}
}

Q: A regular expression for dates like 2024-05-31
A: ^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$

Q: Center a div with CSS.
A: .parent {
  display: flex;
  justify-content: center;
  align-items: center;
  min-height: 100vh;
}

Q: Identity matrix of size 6 as a Python literal
A: [[1, 0, 0, 0, 0, 0],
 [0, 1, 0, 0, 0, 0],
 [0, 0, 1, 0, 0, 0],
 [0, 0, 0, 1, 0, 0],
 [0, 0, 0, 0, 1, 0],
 [0, 0, 0, 0, 0, 1]]

Q: Read a file line by line in Rust.
A: use std::fs::File;
use std::io::{self, BufRead, BufReader};

fn main() -> io::Result<()> {
    let file = File::open("input.txt")?;
    for line in BufReader::new(file).lines() {
        println!("{}", line?);
    }
    Ok(())
}

Q: Fibonacci with memoisation in Python
A: from functools import cache


@cache
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

Q: HTML for a table with two rows
A: <table>
  <tr>
    <th>Name</th>
    <th>Age</th>
  </tr>
  <tr>
    <td>Mia</td>
    <td>31</td>
  </tr>
</table>

Q: Write a unit test for a function add(a, b).
A: import unittest

from calc import add


class AddTest(unittest.TestCase):
    def test_adds_two_numbers(self):
        self.assertEqual(add(2, 3), 5)

    def test_adds_a_negative_number(self):
        self.assertEqual(add(2, -3), -1)

    def test_adds_zero(self):
        self.assertEqual(add(0, 0), 0)

Q: Binary search in TypeScript
A: export function binarySearch(values: number[], wanted: number): number {
  let low = 0;
  let high = values.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (values[middle] === wanted) return middle;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle - 1;
  }
  return -1;
}

Q: A GitHub workflow that runs pytest
A: name: tests
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install -e .[dev]
      - run: pytest -q

Q: Draw a triangle of five rows with stars in Python.
A: for row in range(1, 6):
    print(" " * (5 - row) + "*" * (2 * row - 1))

Q: Show the triangle of five rows that it prints.
A:     *
   ***
  *****
 *******
*********

Q: Makefile for a C program with two files
A: CC = gcc
CFLAGS = -Wall -O2

app: main.o util.o
	$(CC) $(CFLAGS) -o $@ $^

%.o: %.c
	$(CC) $(CFLAGS) -c $<

clean:
	rm -f app *.o

.PHONY: clean

Q: Merge two dictionaries in Python 3.9
A: merged = first | second

Q: Quick sort in Haskell
A: quicksort :: Ord a => [a] -> [a]
quicksort [] = []
quicksort (p:xs) = quicksort [x | x <- xs, x < p] ++ [p] ++ quicksort [x | x <- xs, x >= p]

Q: Call a REST API with fetch and handle errors.
A: async function load(url) {
  try {
    const response = await fetch(url);
    if (!response.ok) {
      throw new Error(`HTTP ${response.status}`);
    }
    return await response.json();
  } catch (error) {
    console.error("loading failed:", error);
    return null;
  }
}

Q: Train a linear regression with scikit-learn.
A: from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split

X, y = load_diabetes(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
model = LinearRegression().fit(X_train, y_train)
print(f"R2 on the test set: {model.score(X_test, y_test):.3f}")

Q: Swap two variables in Ruby.
A: a, b = b, a

Q: nginx: redirect http to https
A: server {
    listen 80;
    server_name example.com;
    return 301 https://$host$request_uri;
}

Q: A Kotlin data class for a person
A: data class Person(
    val name: String,
    val age: Int,
    val email: String? = null,
)

Q: Chunk a list into pieces of n in Python.
A: def chunks(items, n):
    for start in range(0, len(items), n):
        yield items[start:start + n]

Q: A loop in assembler that counts down from 10 (x86, NASM)
A: section .text
global _start
_start:
    mov ecx, 10
next:
    dec ecx
    jnz next
    mov eax, 1
    xor ebx, ebx
    int 0x80

Q: Create a table for blog posts in PostgreSQL.
A: CREATE TABLE posts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title       text NOT NULL,
    body        text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX posts_created_at ON posts (created_at DESC);

Q: Matrix multiplication in plain Python
A: def multiply(a, b):
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]

Q: A C++ class for a stack of integers
A: class Stack {
public:
    void push(int value) { items.push_back(value); }
    int pop() {
        int value = items.back();
        items.pop_back();
        return value;
    }
    bool empty() const { return items.empty(); }

private:
    std::vector<int> items;
};

Q: PowerShell: the five largest files in a folder
A: Get-ChildItem -File -Recurse | Sort-Object Length -Descending | Select-Object -First 5 Name, Length

Q: Parse command line arguments in Python.
A: import argparse

parser = argparse.ArgumentParser(description="Resize images.")
parser.add_argument("files", nargs="+", help="images to resize")
parser.add_argument("--width", type=int, default=800)
parser.add_argument("--height", type=int, default=600)
parser.add_argument("--quiet", action="store_true")
args = parser.parse_args()

Q: An enum of the weekdays in C#
A: public enum Weekday
{
    Monday = 1,
    Tuesday = 2,
    Wednesday = 3,
    Thursday = 4,
    Friday = 5,
    Saturday = 6,
    Sunday = 7
}

Q: Debounce in JavaScript
A: function debounce(call, wait) {
  let timer = null;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...args), wait);
  };
}

Q: LaTeX for the quadratic formula
A: \[ x_{1,2} = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a} \]

Q: Count words in a text with awk.
A: awk '{ for (i = 1; i <= NF; i++) count[tolower($i)]++ } END { for (w in count) print count[w], w }' text.txt | sort -rn

Q: Set up logging in Python.
A: import logging

logging.basicConfig(
    level=logging.INFO,
    format="%(asctime)s %(levelname)s %(name)s: %(message)s",
)
log = logging.getLogger(__name__)
log.info("started")

Q: A minimal PyTorch training loop
A: for epoch in range(epochs):
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
    print(epoch, loss.item())
""")
