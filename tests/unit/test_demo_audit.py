"""The dependency audit: on this very environment, and on distributions made up in a temporary folder."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from squadron.demo import inventory, licenses, report, risks, spdx, summaries
from squadron.runtime.errors import Terminal

MIT_TEXT = """\
MIT License

Copyright (c) 2020 Somebody

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.
"""
BSD3_TEXT = """\
Copyright (c) 2020 Somebody. All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted:
 * Redistributions of source code must retain the above copyright notice.
 * Redistributions in binary form must reproduce the above copyright notice.
 * Neither the name of the author may be used to endorse or promote products.
"""
BSD2_TEXT = BSD3_TEXT.replace(
    " * Neither the name of the author may be used to endorse or promote products.\n", ""
)
GPL3_TEXT = """\
                    GNU GENERAL PUBLIC LICENSE
                       Version 3, 29 June 2007

 [...] END OF TERMS AND CONDITIONS

    This program is free software: you can redistribute it and/or modify
    it under the terms of the GNU General Public License as published by
    the Free Software Foundation, either version 3 of the License, or
    (at your option) any later version.
"""
ISC_TEXT = """\
Permission to use, copy, modify, and/or distribute this software for any purpose with or
without fee is hereby granted"""
TEXTS = {
    "MIT": MIT_TEXT,
    "MIT-0": MIT_TEXT[: MIT_TEXT.index("The above")],
    "BSD-3-Clause": BSD3_TEXT,
    "BSD-2-Clause": BSD2_TEXT,
    "Apache-2.0": "                 Apache License\n           Version 2.0, January 2004\n",
    "MPL-2.0": "Mozilla Public License Version 2.0\n==================================\n",
    "GPL-3.0-only": GPL3_TEXT,
    "GPL-3.0-or-later": GPL3_TEXT[GPL3_TEXT.index("    This program") :],
    "GPL-2.0-only": "GNU GENERAL PUBLIC LICENSE\n   Version 2, June 1991\n",
    "LGPL-2.1-only": "GNU LESSER GENERAL PUBLIC LICENSE\n   Version 2.1, February 1999\n",
    "LGPL-3.0-only": "GNU LESSER GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007\n",
    "AGPL-3.0-only": "GNU AFFERO GENERAL PUBLIC LICENSE\n   Version 3, 19 November 2007\n",
    "ISC": f"{ISC_TEXT}, provided that the above copyright notice appears in all copies.",
    "0BSD": f"{ISC_TEXT}.",
    "PSF-2.0": "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n",
    "Unlicense": "This is free and unencumbered software released into the public domain.\n",
    "CC0-1.0": "Creative Commons Legal Code\n\nCC0 1.0 Universal\n",
    "Zlib": "2. Altered source versions must be plainly marked as such.\n",
    "HPND": "Permission to use, copy, modify, and distribute this software and its\ndocumentation",
}

Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Install a made-up distribution into a folder at the head of sys.path, and return its name."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def install(
        *headers: str,
        name: str = "madeup",
        version: str | None = "1.0",
        readme: str = "",
        files: dict[str, str] | None = None,
        metadata: bytes | None = None,
    ) -> str:
        folder = tmp_path / f"{name.replace('-', '_')}-{version or '1.0'}.dist-info"
        folder.mkdir()
        lines = [
            "Metadata-Version: 2.4",
            f"Name: {name}",
            *([f"Version: {version}"] if version else []),
            *headers,
        ]
        text = "\n".join(lines) + "\n\n" + textwrap.dedent(readme)
        (folder / "METADATA").write_bytes(metadata if metadata is not None else text.encode())
        record = [f"{folder.name}/METADATA,,10"]
        for path, content in (files or {}).items():
            target = tmp_path / path.replace("INFO", folder.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            record.append(f"{target.relative_to(tmp_path)},,{len(content)}")
        (folder / "RECORD").write_text("\n".join(record))
        importlib.invalidate_caches()
        return name

    return install


def kinds(assessment: risks.RiskAssessment) -> dict[str, str]:
    return {finding.kind: finding.level for finding in assessment.findings}


# --- on this environment ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here() -> inventory.Installation:
    return inventory.take_inventory()


def test_inventory_lists_each_installed_distribution_once(here: inventory.Installation) -> None:
    names = [one.name.lower().replace("_", "-") for one in here.distributions]
    assert len(names) == len(set(names))
    assert {"pydantic", "ray", "nats-py", "packaging"} <= set(names)
    by_name = {one.name: one for one in here.distributions}
    assert by_name["pydantic_core"].has_native_code is True
    assert by_name["packaging"].has_native_code is False
    assert (by_name["ray"].size_bytes or 0) > 10_000_000


def test_every_installed_distribution_gets_a_licence_summary_and_risk(here: inventory.Installation) -> None:
    found = [licenses.classify(one.name) for one in here.distributions]
    told = [summaries.summarize(one.name) for one in here.distributions]
    judged = [risks.assess(one.distribution, one.spdx, one.category) for one in found]
    audit = report.write(here, found, told, judged)
    unknown = [one.distribution for one in found if one.spdx == "unknown"]
    assert len(unknown) <= 0.1 * len(found), unknown
    high = [one.distribution for one in judged if one.level == "high"]
    assert len(high) <= 0.1 * len(judged), high
    assert sum(bool(one.summary) for one in told) >= 0.9 * len(told)
    assert audit.data["counts"]["not_assessed"] == 0
    json.dumps(audit.data)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pydantic", "MIT"),
        ("ray", "Apache-2.0"),
        ("nats-py", "Apache-2.0"),
        ("Jinja2", "BSD-3-Clause"),  # its classifier says only "BSD License"; the file knows which
        ("typing-extensions", "PSF-2.0"),
        ("certifi", "MPL-2.0"),
    ],
)
def test_known_licences_come_out_right(name: str, expected: str) -> None:
    found = licenses.classify(name)
    assert found.spdx == expected
    assert found.confidence >= 0.8
    assert found.evidence


def test_a_distribution_that_is_not_installed_is_named_in_the_error() -> None:
    for ask in (licenses.classify, summaries.summarize, risks.assess):
        with pytest.raises(Terminal, match="no-such-distribution"):
            ask("no-such-distribution")


# --- licences -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("expected", "text"), TEXTS.items(), ids=TEXTS)
def test_licence_texts_are_recognised(expected: str, text: str, make: Make) -> None:
    found = licenses.classify(make(files={"INFO/licenses/LICENSE": text}))
    assert found.spdx == expected
    assert found.category != "unknown"
    assert [one.source.split()[0] for one in found.evidence if one.source != "comparison"] == ["file"]


def test_a_valid_expression_decides(make: Make) -> None:
    found = licenses.classify(make("License-Expression: mit OR apache-2.0"))
    assert (found.spdx, found.category) == ("MIT OR Apache-2.0", "permissive")
    assert found.evidence[0].source == "License-Expression"


def test_an_invalid_expression_is_said_and_lowers_the_confidence(make: Make) -> None:
    found = licenses.classify(make("License-Expression: Apache License 2.0"))
    assert found.spdx == "Apache-2.0"
    assert found.confidence <= 0.7
    assert "not a valid SPDX expression" in found.evidence[0].text
    nonsense = licenses.classify(make("License-Expression: All yours", name="nonsense"))
    assert (nonsense.spdx, nonsense.confidence) == ("unknown", 0.0)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("MIT", "MIT"),
        ("The MIT License (MIT)", "MIT"),
        ("MIT Licence", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Apache 2", "Apache-2.0"),
        ("ASL 2.0", "Apache-2.0"),
        ("3-Clause BSD License", "BSD-3-Clause"),
        ("New BSD", "BSD-3-Clause"),
        ("Simplified BSD License", "BSD-2-Clause"),
        ("MPL v2.0", "MPL-2.0"),
        ("GPLv3+", "GPL-3.0-or-later"),
        ("GNU GPL v2 or later", "GPL-2.0-or-later"),
        ("GPL-2.0", "GPL-2.0-only"),
        ("LGPLv2.1", "LGPL-2.1-only"),
        ("GNU Lesser General Public License v3 or later", "LGPL-3.0-or-later"),
        ("AGPL-3.0-or-later", "AGPL-3.0-or-later"),
        ("PSF", "PSF-2.0"),
        ("Public Domain", "LicenseRef-Public-Domain"),
        ("MIT/Apache-2.0", "MIT OR Apache-2.0"),
        ("MIT, BSD 3-Clause", "MIT AND BSD-3-Clause"),
        ("Proprietary", "LicenseRef-Proprietary"),
        ("BSD", "unknown"),
        ("see LICENSE file", "unknown"),
        ("UNKNOWN", "unknown"),
    ],
)
def test_license_field_names_are_normalised(written: str, expected: str, make: Make) -> None:
    assert licenses.classify(make(f"License: {written}")).spdx == expected


def test_a_whole_licence_in_the_field_is_read(make: Make) -> None:
    folded = BSD3_TEXT.replace("\n", "\n        ")
    found = licenses.classify(make(f"License: {folded}"))
    assert found.spdx == "BSD-3-Clause"
    assert all(len(one.text) < 400 for one in found.evidence)


def test_a_family_keeps_its_category_and_honestly_stays_unknown(make: Make) -> None:
    found = licenses.classify(make("Classifier: License :: OSI Approved :: BSD License"))
    assert (found.spdx, found.category) == ("unknown", "permissive")
    gpl = licenses.classify(make("License: GPL", name="some-gpl"))
    assert (gpl.spdx, gpl.category) == ("unknown", "strong copyleft")


def test_classifiers_alone_are_enough_when_they_are_exact(make: Make) -> None:
    later = "Classifier: License :: OSI Approved :: GNU General Public License v3 or later (GPLv3+)"
    found = licenses.classify(make("Classifier: License :: OSI Approved", later))
    assert (found.spdx, found.category) == ("GPL-3.0-or-later", "strong copyleft")


def test_or_later_elsewhere_completes_a_bare_version(make: Make) -> None:
    later = "Classifier: License :: OSI Approved :: GNU General Public License v2 or later (GPLv2+)"
    assert licenses.classify(make("License: GPLv2", later)).spdx == "GPL-2.0-or-later"


def test_conflicting_sources_are_evidence_and_lower_the_confidence(make: Make) -> None:
    agreeing = licenses.classify(make("License: MIT", name="same", files={"INFO/LICENSE": MIT_TEXT}))
    found = licenses.classify(make("License: MIT", files={"INFO/LICENSE": GPL3_TEXT}))
    assert found.spdx == "MIT"
    assert found.confidence < 0.6 < agreeing.confidence
    assert "GPL-3.0-only" in found.evidence[0].text
    assert {"comparison", "License field", "file LICENSE"} == {one.source for one in found.evidence}


def test_two_licence_files_are_a_choice_only_when_something_says_so(make: Make) -> None:
    both = {"INFO/LICENSE-MIT": MIT_TEXT, "INFO/LICENSE-APACHE": TEXTS["Apache-2.0"]}
    assert licenses.classify(make(files=both)).spdx == "MIT AND Apache-2.0"
    offered = {**both, "INFO/LICENSE": "Under the terms of *either* of the licenses found beside this file."}
    assert licenses.classify(make(name="offered", files=offered)).spdx == "MIT OR Apache-2.0"


def test_licences_of_bundled_code_do_not_decide_but_are_told(make: Make) -> None:
    files = {"INFO/licenses/LICENSE": MIT_TEXT, "INFO/licenses/vendor/x/COPYING": TEXTS["LGPL-2.1-only"]}
    found = licenses.classify(make("Summary: x", files=files))
    assert (found.spdx, found.bundled) == ("MIT", ["LGPL-2.1-only"])
    assert kinds(risks.assess("madeup", found.spdx, found.category)) == {"bundled copyleft": "low"}


def test_a_licence_file_that_nobody_knows_is_quoted(make: Make) -> None:
    found = licenses.classify(make(files={"INFO/LICENSE": "You may look, but don't touch."}))
    assert (found.spdx, found.category, found.confidence) == ("unknown", "unknown", 0.0)
    assert "don't touch" in found.evidence[0].text


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT AND GPL-3.0-only", "strong copyleft"),
        ("MIT OR GPL-3.0-only", "permissive"),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", "weak copyleft"),
        ("GPL-2.0-or-later WITH Classpath-exception-2.0", "weak copyleft"),
        ("LicenseRef-NVIDIA-Proprietary", "proprietary"),
        ("CC0-1.0", "public domain"),
        ("LicenseRef-Odd", "unknown"),
        ("MIT AND LicenseRef-Odd", "unknown"),
        ("unknown", "unknown"),
        ("", "unknown"),
    ],
)
def test_expressions_have_the_category_of_what_they_demand(expression: str, expected: str) -> None:
    assert spdx.category_of(expression) == expected


# --- inventory ----------------------------------------------------------------------------------------


def test_the_first_of_a_name_on_sys_path_wins(make: Make) -> None:
    make("Summary: A fake.", name="pydantic", version="0.1")
    found = [one for one in inventory.take_inventory().distributions if one.name.lower() == "pydantic"]
    assert [one.version for one in found] == ["0.1"]
    assert inventory.find("PyDantic").version == "0.1"


def test_native_code_size_and_home_page_come_from_the_metadata(make: Make) -> None:
    urls = ("Project-URL: Docs, https://d.example", "Project-URL: Home Page, https://h.example")
    make(*urls, files={"madeup/fast.cpython-311-x86_64-linux-gnu.so": "0123456789"})
    found = inventory.describe(inventory.find("madeup"))
    assert found.has_native_code is True
    assert found.size_bytes == 20
    assert found.home_page == "https://h.example"
    assert kinds(risks.assess("madeup", "MIT", "permissive"))["native code"] == "low"


@pytest.mark.parametrize("metadata", [b"", b"\xff\xfe\x00garbage\n\n\x80", b"Name\nno colon anywhere", b"\n\n\n"])
def test_broken_metadata_is_survived_with_the_name_of_the_folder(make: Make, metadata: bytes) -> None:
    make(name="broken", version="2.0", metadata=metadata)
    found = next(one for one in inventory.take_inventory().distributions if one.name == "broken")
    assert (found.version, found.release_metadata) == ("2.0", False)
    assert licenses.classify("broken").spdx == "unknown"
    assert summaries.summarize("broken").source in {"none", "README"}
    assert kinds(risks.assess("broken"))["no release metadata"] == "medium"
    assert kinds(risks.assess("broken"))["missing licence"] == "high"


def test_leftovers_of_an_uninstall_are_not_installed(make: Make, tmp_path: Path) -> None:
    make(name="gone")
    (tmp_path / "gone-1.0.dist-info").rename(tmp_path / "~one-1.0.dist-info")
    importlib.invalidate_caches()
    assert "gone" not in {one.name for one in inventory.take_inventory().distributions}


# --- summaries ----------------------------------------------------------------------------------------


def test_a_markdown_readme_is_told_without_its_decoration(make: Make) -> None:
    readme = """\
        # madeup

        [![build](https://img.example/b.svg)](https://ci.example) <img src="logo.png">

        **madeup** is a [small](https://s.example) parser for `Dict[str, int]` files.
        It reads big files quickly.

        ```python
        import madeup  # A very long sentence that must not be taken for prose.
        ```

        ## Installation

        Run the installer on every machine and wait until it has finished.
        """
    found = summaries.summarize(make("Description-Content-Type: text/markdown", readme=readme))
    assert found.summary == "madeup is a small parser for Dict[str, int] files. It reads big files quickly."
    assert found.source == "README"


def test_a_restructured_readme_is_told_without_its_markup(make: Make) -> None:
    readme = """\
        ======
        madeup
        ======

        .. image:: https://img.example/b.svg
           :target: https://ci.example

        ``madeup`` is the parser of `INI files <https://i.example>`_, e.g. for :class:`~configparser.Parser`.

        Example::

            import madeup
            print("This is a sentence inside of a literal block.")
        """
    found = summaries.summarize(make(readme=readme), sentences=1)
    assert found.summary == "madeup is the parser of INI files, e.g. for configparser.Parser."


def test_without_a_readme_the_summary_field_is_used_and_unicode_survives(make: Make) -> None:
    found = summaries.summarize(make("Summary: Größe messen - 測量大小"))
    assert (found.summary, found.source) == ("Größe messen - 測量大小", "Summary field")
    assert summaries.summarize(make(name="mute")).source == "none"


# --- risks --------------------------------------------------------------------------------------------


def test_copyleft_is_judged_against_the_licence_of_the_project(make: Make) -> None:
    make("License-Expression: GPL-3.0-only", "Summary: x")
    assert kinds(risks.assess("madeup", "GPL-3.0-only", "strong copyleft")) == {"strong copyleft": "high"}
    assert kinds(risks.assess("madeup", "GPL-3.0-only")) == {"strong copyleft": "high"}
    inside_gpl = risks.assess("madeup", "GPL-3.0-only", "strong copyleft", project_license="GPL-3.0-only")
    assert inside_gpl.level == "none"
    assert risks.assess("madeup", "MPL-2.0", "weak copyleft").level == "low"
    assert risks.assess("madeup", "MIT", "permissive").level == "none"
    clash = risks.assess("madeup", "Apache-2.0", "permissive", project_license="GPL-2.0-only")
    assert kinds(clash) == {"licence clash": "high"}


def test_unmet_and_conflicting_requirements_are_found_but_not_those_of_extras(make: Make) -> None:
    make(
        "Summary: x",
        "Requires-Dist: no-such-thing>=1",
        "Requires-Dist: pydantic<1",
        "Requires-Dist: packaging>=20",
        "Requires-Dist: not-here; extra == 'test'",
        "Requires-Dist: only-there; sys_platform == 'amiga'",
        "Requires-Dist: ???",
        "Provides-Extra: test",
    )
    found = risks.assess("madeup", "MIT", "permissive")
    assert kinds(found) == {
        "unmet requirement": "medium",
        "version conflict": "medium",
        "odd requirement": "low",
    }
    details = " ".join(one.detail for one in found.findings)
    assert "no-such-thing" in details
    assert "pydantic<1" in details
    assert "not-here" not in details


@pytest.mark.parametrize(
    ("version", "header", "expected"),
    [
        ("1.0rc1", "Summary: x", {"pre-release": "low"}),
        ("0.0.3", "Summary: x", {"early version": "low"}),
        ("1.0+cu12", "Summary: x", {"local version": "low"}),
        ("banana", "Summary: x", {"odd version": "medium"}),
        ("1.0", "Summary: x\nRequires-Python: >=9", {"requires-python": "high"}),
        ("1.0", "Summary: x\nRequires-Python: soon", {"odd requires-python": "low"}),
        ("1.0", "Summary: x\nClassifier: Development Status :: 7 - Inactive", {"inactive": "medium"}),
        (None, "Author: me", {"no release metadata": "medium"}),
    ],
)
def test_oddities_of_a_release_are_found(
    version: str | None, header: str, expected: dict[str, str], make: Make
) -> None:
    make(header, version=version)
    assert kinds(risks.assess("madeup", "MIT", "permissive")) == expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ('{"url": "file:///src", "dir_info": {"editable": true}}', {"editable install": "low"}),
        ('{"url": "https://me:pw@g.example/r", "vcs_info": {"commit_id": "abc"}}', {"direct url": "medium"}),
        ('{"url": "https://x/y.whl", "archive_info": {"hashes": {"sha256": "00"}}}', {"direct url": "low"}),
        ("[]", {"direct url": "low"}),
        ("{broken", {"direct url": "low"}),
    ],
)
def test_installs_from_elsewhere_are_found(origin: str, expected: dict[str, str], make: Make) -> None:
    found = risks.assess(make("Summary: x", files={"INFO/direct_url.json": origin}), "MIT", "permissive")
    assert kinds(found) == expected
    assert "pw@" not in found.findings[0].detail


# --- report -------------------------------------------------------------------------------------------


def some(count: int) -> inventory.Installation:
    distributions = [inventory.Distribution(name=f"pkg-{at}", version="1.0") for at in range(count)]
    return inventory.Installation(python="3.11.0", platform="test", distributions=distributions)


def test_the_worst_comes_first() -> None:
    low, high = (risks.Risk(kind=f"k-{level}", level=level, detail="d") for level in ("medium", "high"))
    judged = [
        risks.RiskAssessment(distribution="pkg-0", level="medium", findings=[low]),
        risks.RiskAssessment(distribution="pkg-1", level="high", findings=[high]),
    ]
    text = report.write(some(2), risks=judged).markdown
    assert text.index("| high | pkg-1 |") < text.index("| medium | pkg-0 |")


def test_failed_tasks_are_listed_with_their_reason_and_never_crash() -> None:
    marker = {"failed": "dead_lettered", "reason": "it | broke", "input": {"distribution": "PKG_0"}}
    known = {"distribution": "pkg-1", "spdx": "MIT", "category": "permissive", "confidence": 0.9}
    audit = report.write(
        some(3).model_dump(), [marker, known, None, 7, {"spdx": 3}], [{"failed": "timed_out"}], [], goal="all"
    )
    assert "dead_lettered: it \\| broke" in audit.markdown
    reasons = {(one["distribution"], one["what"]): one["reason"] for one in audit.data["not_assessed"]}
    assert reasons["PKG_0", "licence"] == "dead_lettered: it | broke"
    assert reasons["pkg-2", "licence"] == "no result was delivered"
    assert ("pkg-1", "licence") not in reasons
    assert ("pkg-0", "licence") not in reasons


def test_a_result_makes_an_earlier_failure_of_the_same_task_obsolete() -> None:
    marker = {"failed": "failed", "reason": "first try", "input": {"distribution": "pkg-0"}}
    audit = report.write(some(1), licenses=[marker, licenses.License(distribution="pkg-0", spdx="MIT")])
    assert "first try" not in audit.markdown


@pytest.mark.parametrize("broken", [{}, {"failed": "timed_out", "reason": "too slow"}, {"distributions": 3}])
def test_without_an_inventory_the_results_still_make_a_report(broken: dict[str, object]) -> None:
    audit = report.write(broken, [licenses.License(distribution="alone", version="3", spdx="MIT")])
    assert "| alone | 3 | MIT |" in audit.markdown
    assert any(one["what"] == "inventory" for one in audit.data["not_assessed"])
    assert report.write(broken).markdown.startswith("# Dependency audit")


def test_doubtful_licences_bring_their_evidence() -> None:
    proof = [licenses.Evidence(source="file COPYING", text="not recognised: look, don't touch")]
    audit = report.write(some(1), [licenses.License(distribution="pkg-0", evidence=proof)])
    assert "look, don't touch" in audit.markdown
    assert audit.data["distributions"][0]["evidence"]


def test_words_of_a_package_make_no_markup() -> None:
    told = summaries.PackageSummary(distribution="pkg-0", summary="a | b <script>\n`x` [y](z)", source="README")
    row = next(line for line in report.write(some(1), summaries=[told]).markdown.splitlines() if "script" in line)
    assert r"a \| b \<script\> \`x\` \[y\](z)" in row


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_it_works_for_none_one_and_a_thousand(count: int) -> None:
    names = [one.name for one in some(count).distributions]
    found = [
        licenses.License(distribution=name, spdx="MIT", category="permissive", confidence=1) for name in names
    ]
    audit = report.write(some(count), found)
    assert audit.data["counts"]["distributions"] == count
