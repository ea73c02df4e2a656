"""The pages in a real Chromium over the database of a real run that went bad."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.browser.conftest import Site
from tests.support.browser import Watched
from tests.support.faulty_runs import POISONED

pytestmark = pytest.mark.timeout(300)

TRANSFERRED_BYTES_MAX = 400_000
VIEWS = {
    "runs": "/",
    "run": "/runs/runs%2Fbroken",
    "alerts": "/alerts",
    "compare": "/compare?old=1&new=2",
    "map": "/map?run=runs%2Fbroken",
    "tensor": f"/tensor?run=runs%2Fbroken&name={POISONED}",
}


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_is_accessible_small_and_from_one_server(site: Site, visitor: Watched, view: str) -> None:
    visitor.page.goto(site.url + VIEWS[view])
    found = Axe().run(visitor.page)
    assert found.response["violations"] == [], found.generate_report()
    assert visitor.n_bytes < TRANSFERRED_BYTES_MAX
    assert visitor.hosts == {site.url.removeprefix("http://")}


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_fits_a_telephone(site: Site, visitor: Watched, view: str) -> None:
    visitor.page.set_viewport_size({"width": 360, "height": 740})
    visitor.page.goto(site.url + VIEWS[view])
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_fault_is_found_within_two_clicks(site: Site, visitor: Watched) -> None:
    page = visitor.page
    page.goto(site.url)
    expect(page.locator("body")).to_contain_text(POISONED)  # without any click: the first bad tensor
    page.get_by_role("link", name="runs/broken").first.click()
    expect(page.locator(".verdict").first).to_contain_text("first not finite at step 200")
    page.locator(".verdict a").first.click()
    expect(page.locator("h1")).to_contain_text(POISONED)
    expect(page.locator("body")).to_contain_text("NaN")


def test_two_checkpoints_are_chosen_and_compared(site: Site, visitor: Watched) -> None:
    page = visitor.page
    page.goto(f"{site.url}/runs/runs%2Fbroken")
    page.get_by_label("with").select_option(label="step 200")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".card .reason")).to_contain_text("1 hold NaN or infinity")
    expect(page.locator("tbody tr").first).to_contain_text(POISONED)


def test_the_incident_says_what_happened_first(site: Site, visitor: Watched) -> None:
    page = visitor.page
    page.goto(site.url)
    page.get_by_role("link", name="Alerts", exact=True).click()
    expect(page.locator(".card").first).to_contain_text(POISONED)
    expect(page.locator(".card").first).to_contain_text("first bad step 200")
    page.locator(".card .reason a code").first.click()
    expect(page.locator("h1")).to_contain_text(POISONED)


def test_the_way_of_the_weights_is_drawn(site: Site, visitor: Watched) -> None:
    page = visitor.page
    page.goto(f"{site.url}/runs/runs%2Fsteady")
    page.get_by_role("link", name="The way of the weights").click()
    expect(page.locator(".way circle")).to_have_count(12)
    expect(page.locator(".card .reason").first).to_contain_text("The largest step is to")


def test_everything_can_be_reached_by_keyboard(site: Site, visitor: Watched) -> None:
    page = visitor.page
    page.goto(site.url)
    for _ in range(40):
        page.keyboard.press("Tab")
        if "broken" in (page.evaluate("document.activeElement.getAttribute('href')") or ""):
            break
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("broken")


def test_every_view_says_its_facts_without_scripts(site: Site, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(site.url)
        page.get_by_role("link", name="runs/broken").first.click()
        expect(page.locator(".verdict").first).to_contain_text("first not finite at step 200")
        expect(page.locator(".resume code")).to_contain_text("last-good")
    finally:
        context.close()
