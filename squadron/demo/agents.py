"""The five agents of the dependency audit, thin over the functions beside them.

Their handlers are plain `def`: they read files, so each turn runs in a thread.
"""

from __future__ import annotations

from typing import Any

from squadron.actors.agent import Agent
from squadron.actors.decorators import topic
from squadron.demo import inventory as inventories
from squadron.demo import licenses as license_reader
from squadron.demo import report as reports
from squadron.demo import risks as risk_rules
from squadron.demo import summaries as readmes


class Inventory(Agent):
    """Knows which Python packages are installed."""

    @topic(
        "inventory.list",
        examples=[
            "list all installed Python packages",
            "which dependencies does this environment have, in which versions?",
            "what is installed and how big is it?",
        ],
        tags=["dependencies", "packages", "environment", "versions", "audit"],
        run_timeout_s=60,
    )
    def listing(self) -> inventories.Installation:
        """List every Python package installed in this environment.

        Gives name, version, one-line summary, required Python, home page, size on disk and whether compiled
        code is inside. The first step of any dependency audit: the other checks need its names.
        """
        return inventories.take_inventory()


class LicenseClerk(Agent):
    """Reads licences and says how sure it is."""

    @topic(
        "license.classify",
        examples=[
            "which licence does numpy have?",
            "is this dependency GPL, MIT or Apache?",
            "find the SPDX licence of a package, with evidence",
        ],
        tags=["license", "licence", "spdx", "copyleft", "legal", "compliance", "audit"],
        run_timeout_s=30,
    )
    def classify(self, distribution: str) -> license_reader.License:
        """Find out the software licence of one installed Python package.

        Reads its metadata, classifiers and licence files; answers with an SPDX expression, a category such as
        permissive or strong copyleft, a confidence from 0 to 1 and quotes as evidence. Says "unknown" rather
        than guess.
        """
        return license_reader.classify(distribution)


class Summarizer(Agent):
    """Says in a sentence or two what a package is for."""

    @topic(
        "package.summarize",
        examples=[
            "what does the package httptools do?",
            "summarize the README of a dependency in two sentences",
            "why would anyone install this library?",
        ],
        tags=["summary", "readme", "description", "package", "audit"],
        run_timeout_s=30,
    )
    def summarize(self, distribution: str, sentences: int = 2) -> readmes.PackageSummary:
        """Explain briefly what one installed Python package is and does.

        Picks the most telling sentences of its README, or its one-line summary when the README has none.
        """
        return readmes.summarize(distribution, sentences)


class RiskAssessor(Agent):
    """Looks for what could hurt a project that depends on a package."""

    @topic(
        "risk.assess",
        examples=[
            "is it safe to depend on this package?",
            "does a copyleft licence conflict with our Apache-2.0 project?",
            "are the requirements of this package met in this environment?",
        ],
        tags=["risk", "review", "copyleft", "conflict", "requirements", "security", "audit"],
        run_timeout_s=30,
    )
    def assess(
        self,
        distribution: str,
        spdx: str = "unknown",
        category: str = "unknown",
        project_license: str = "Apache-2.0",
    ) -> risk_rules.RiskAssessment:
        """Assess the risk of using one installed Python package in our project.

        Checks its licence against ours, missing release metadata, pre-releases, compiled code, unmet or
        conflicting requirements and installs from a URL. Wants the licence found before as spdx and category.
        """
        return risk_rules.assess(distribution, spdx, category, project_license)


class ReportWriter(Agent):
    """Turns the results of an audit into a document."""

    @topic(
        "report.write",
        examples=[
            "write the dependency audit report",
            "put licences, summaries and risks together in one Markdown document",
            "which packages need attention?",
        ],
        tags=["report", "markdown", "document", "audit", "summary"],
        run_timeout_s=60,
    )
    def write(
        self,
        inventory: dict[str, Any],
        licenses: list[Any],
        summaries: list[Any],
        risks: list[Any],
        goal: str = "",
    ) -> reports.AuditReport:
        """Write the final report of a dependency audit as Markdown and JSON.

        Combines the inventory with the licences, summaries and risk assessments of its packages: what needs
        attention comes first, then tables and evidence. Failed or missing results are listed as not assessed.
        """
        return reports.write(inventory, licenses, summaries, risks, goal=goal)
