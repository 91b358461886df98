"""The dashboard before an admin API that is made up: what no relay says on demand."""

import re

import pytest
from playwright.sync_api import expect

from stub import HOSTILE, TOKEN, Stub

SIGNED_OUT = "Signed out"


def sign_in(visit, url, token=TOKEN, then="#/overview"):
    page = visit.page
    page.goto(url + then)
    page.get_by_label("Admin token").fill(token)
    page.keyboard.press("Enter")
    return page


def signed_in(visit, url, then="#/overview"):
    page = sign_in(visit, url, then=then)
    expect(page.locator("#state")).to_have_text(re.compile("^(Ready|Draining)$"))
    return page


def rows(page):
    return page.locator("#rows tr")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_readable_and_accessible(stub, visits, scheme):
    visit = visits(stub.url, scheme=scheme)
    page = visit.page
    page.goto(stub.url)
    expect(page.get_by_label("Admin token")).to_be_focused()
    visit.accessible("sign-in")
    visit.picture("sign-in")
    signed_in(visit, stub.url)
    expect(page.locator("#now-bytes")).to_have_text(re.compile(r"^[\d.]+ [kM]B/s$"))
    expect(page.locator("#plot-drops .legend li")).to_have_count(3)
    expect(page.locator("#facts .alarm")).to_contain_text("5 d")
    visit.accessible("overview")
    visit.picture("made-up-overview")

    page.get_by_role("link", name="Allocations").click()
    expect(rows(page)).to_have_count(25)
    expect(rows(page).first.locator("td").nth(3)).to_have_text(re.compile("/s$"))
    visit.accessible("allocations")
    visit.picture("made-up-allocations")
    rows(page).nth(1).get_by_role("button", name="Details").click()
    expect(page.locator("#legs li")).to_have_count(2)
    visit.accessible("details")
    visit.picture("made-up-details")
    page.locator("#detail-kill").click()
    visit.accessible("dialog")
    page.keyboard.press("Escape")

    page.get_by_role("link", name="Guard").click()
    expect(page.locator("#blocks tr")).to_have_count(2)
    visit.accessible("guard")
    visit.picture("made-up-guard")
    page.get_by_role("link", name="Activity").click()
    expect(page.locator("#events li")).to_have_count(5)
    expect(page.locator("#audit tr")).to_have_count(1)
    expect(page.locator("#stream")).to_have_text("live")
    visit.accessible("activity")
    visit.picture("made-up-activity")


def test_it_fits_a_phone(stub, visits):
    visit = visits(stub.url, width=360, height=740)
    page = signed_in(visit, stub.url)
    for view in ("Overview", "Allocations", "Guard", "Activity"):
        page.get_by_role("link", name=view).click()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, f"{view} is {width} wide"
        expect(page.locator("#updated")).to_contain_text("Updated at")
        visit.accessible(f"{view} on a phone")
        visit.picture(f"made-up-phone-{view.lower()}")
    tops = page.locator("nav a").evaluate_all("links => links.map((link) => link.offsetTop)")
    assert len(set(tops)) == 1, "the views' names are in two lines"


def test_texts_from_elsewhere_stay_texts(stub, visits):
    page = signed_in(visits(stub.url), stub.url, "#/guard")
    expect(page.locator("#blocks")).to_contain_text(HOSTILE)
    page.get_by_role("link", name="Activity").click()
    expect(page.locator("#events")).to_contain_text(HOSTILE)
    page.get_by_role("link", name="Allocations").click()
    page.locator("#find-text").fill(stub.allocations[3]["id"])
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first).to_contain_text(HOSTILE)
    rows(page).first.get_by_role("button", name="Details").click()
    expect(page.locator("#detail-facts")).to_contain_text(HOSTILE)
    assert page.locator("img[onerror]").count() == 0
    expect(page).not_to_have_title("owned")


def test_a_wrong_token_is_told_apart_from_other_trouble(stub, visits):
    visit = visits(stub.url)
    page = sign_in(visit, stub.url, "zrc_admin_wrong")
    said = page.locator("#sign-in-said")
    expect(said).to_contain_text("This token is not good")
    visit.accessible("a wrong token")
    visit.picture("wrong-token")

    stub.failing["/admin/stats"] = (429, "too many wrong tokens came from this address", [("Retry-After", 2)])
    page.keyboard.press("Enter")
    expect(said).to_contain_text("Too many wrong tokens came from this address. You can try again in 2 s.")
    button = page.locator("#sign-in-button")
    expect(button).to_be_disabled()
    expect(button).to_have_text(re.compile(r"^Wait \d s$"))
    expect(button).to_be_enabled()
    expect(said).to_contain_text("Now you can try again.")

    stub.failing["/admin/stats"] = (404, "there is no such page", [])
    page.keyboard.press("Enter")
    expect(said).to_contain_text("The admin API does not answer here. It is off by default")
    stub.failing["/admin/stats"] = (421, "the header Host does not name this server", [])
    page.keyboard.press("Enter")
    expect(said).to_have_text("The header Host does not name this server.")
    page.get_by_label("Admin token").fill("two words")
    page.keyboard.press("Enter")
    expect(said).to_contain_text("This cannot be a token")
    stub.stop()
    page.get_by_label("Admin token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(said).to_contain_text("No answer from the relay. Is it running, and is this its address?")
    expect(page.locator("#views")).to_be_hidden()
    visit.expect_fault("status of (401|404|421|429)|ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE")


def test_the_token_is_kept_in_the_tab_alone_and_only_until_signing_out(stub, visits):
    visit = visits(stub.url)
    page = signed_in(visit, stub.url)
    assert TOKEN not in page.url
    assert TOKEN not in page.content()
    page.reload()
    expect(page.locator("#state")).to_have_text("Ready")
    stored = "JSON.stringify({...localStorage}) + document.cookie"
    assert TOKEN not in page.evaluate(stored)
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#state")).to_have_text(SIGNED_OUT)
    assert page.evaluate("sessionStorage.length") == 0
    assert page.locator("#rows tr, #blocks tr, #audit tr, #events li").count() == 0
    before = len(stub.asked)
    page.reload()
    expect(page.get_by_label("Admin token")).to_be_focused()
    assert all(not path.startswith("/admin/") for _, path in stub.asked[before:])


def test_nothing_of_the_relay_stays_in_the_page_after_signing_out(stub, visits):
    page = signed_in(visits(stub.url), stub.url)
    chosen = stub.allocations[3]
    # What each view has when it has its answers.
    filled = {
        "Overview": ["#checks li", "#facts dd", "#refused tr", "#plot-drops .legend li"],
        "Guard": ["#blocks tr", "#security tr"],
        "Activity": ["#events li", "#audit tr"],
        "Allocations": ["#rows tr"],
    }
    for view, parts in filled.items():
        page.get_by_role("link", name=view).click()
        expect(page.locator(f"#{view.lower()}")).to_be_visible()
        for part in parts:
            expect(page.locator(part)).not_to_have_count(0)
    page.locator("#find-text").fill(chosen["id"][:12])
    rows(page).first.get_by_role("button", name="Details").click()
    expect(page.locator("#legs li")).to_have_count(2)
    page.locator("#detail-kill").click()
    page.keyboard.press("Escape")
    # Everything that the stub says and no other page would, and first that it is found at all.
    secrets = ["relay.example.com", "eu-central", "5f" * 16, chosen["id"][:12], chosen["device_id"], "203.0.113.7", "laptop"]
    secrets += ["192.0.2.0/24", "TOKEN_EXPIRED", "137 of 1000", "over rate", "bad_token", "abab", "abc)"]
    # Of HOSTILE, what markup leaves as it is; and what is said of the guard's level.
    secrets += ["document.title='owned'", "Nobody floods the relay with handshakes."]
    assert secrets[-2] in HOSTILE
    text = "document.documentElement.outerHTML + [...document.querySelectorAll('input')].map((it) => it.value)"
    before = page.evaluate(text)
    assert [secret for secret in secrets if secret not in before] == []
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#state")).to_have_text(SIGNED_OUT)
    after = page.evaluate(text)
    assert [secret for secret in secrets if secret in after] == []


def test_what_is_logged_is_shown_and_changed(stub, visits):
    visit = visits(stub.url)
    visit.expect_fault("status of 400")
    page = signed_in(visit, stub.url, "#/activity")
    now, wanted = page.locator("#log-now"), page.get_by_label("Log this from now on")
    expect(now).to_have_text("info")
    wanted.fill("LOUD")
    page.keyboard.press("Enter")
    expect(page.locator("#log-said")).to_have_text("Filter is off, error, warn, info, debug or trace.")
    expect(now).to_have_text("info")
    wanted.fill(" info,zrc_relay::relay=debug ")
    page.keyboard.press("Tab")
    expect(page.locator("#log-set")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#told")).to_have_text("The relay logs info,zrc_relay::relay=debug from now on.")
    expect(now).to_have_text("info,zrc_relay::relay=debug")
    expect(page.locator("#log-said")).to_be_hidden()
    expect(wanted).to_have_value("")
    assert stub.filter == "info,zrc_relay::relay=debug"
    visit.accessible("the log level")


def test_a_flood_of_events_and_a_thousand_allocations_leave_the_page_alive(stub, visits):
    stub.allocations = [stub.allocation(number) for number in range(1000)]
    stub.flood = 1000
    page = signed_in(visits(stub.url), stub.url, "#/activity")
    events = page.locator("#events li")
    expect(events).to_have_count(500)
    newest = "Number(document.querySelector('#events li').textContent.match(/connection (\\d+)/)?.[1])"
    # How long whoever clicks waits, at the worst, while five thousand more come.
    worst_ms, drawn = page.evaluate(f"""async () => {{
        const until = {newest} + 5000;
        let [worst, drawn] = [0, 0];
        new MutationObserver(() => (drawn += 1)).observe(document.querySelector("#events"), {{ childList: true }});
        const began = performance.now();
        for (let last = performance.now(); !({newest} > until); ) {{
            await new Promise((resolve) => setTimeout(resolve, 10));
            worst = Math.max(worst, performance.now() - last);
            last = performance.now();
        }}
        return [worst, (drawn * 1000) / (performance.now() - began)];
    }}""")
    print(f"at the worst nothing moved for {worst_ms:.0f} ms; drawn {drawn:.1f} times a second")
    # By the relay's answers once a second, and together with others four times.
    assert drawn < 8
    assert worst_ms < 1500
    expect(events).to_have_count(500)
    page.get_by_role("button", name="Pause").click()
    held = events.first.text_content()
    page.get_by_role("link", name="Allocations").click()
    page.get_by_label("Per page").select_option("100")
    expect(rows(page)).to_have_count(100)
    expect(page.locator("#shown")).to_have_text("100 of 1\u202f000")
    page.get_by_role("link", name="Activity").click()
    expect(events.first).to_have_text(held)


def test_a_stream_that_says_nothing_any_more_is_begun_anew(stub, visits):
    visit = visits(stub.url)
    visit.page.clock.install()
    page = signed_in(visit, stub.url, "#/activity")
    stream = page.locator("#stream")
    expect(stream).to_have_text("live")
    asked = lambda: sum(path == "/admin/events" for _, path in stub.asked)
    stub.silent = True
    # What was on its way has come.
    page.wait_for_timeout(1000)
    assert asked() == 1
    page.clock.fast_forward(41_000)
    expect(stream).to_have_attribute("title", "nothing came for 40 s")
    stub.silent = False
    page.clock.fast_forward(2000)
    expect(stream).to_have_text("live")
    assert asked() == 2


def test_the_relays_clock_is_the_one_that_counts(stub, visits):
    page = signed_in(visits(stub.url), stub.url, "#/allocations")
    expires = rows(page).first.locator("td").nth(7)
    expect(expires).to_have_text(re.compile(r"^in \d h( \d+ min)?$"))
    right = expires.text_content()[:6]
    # This machine's is three days behind.
    visit = visits(stub.url)
    visit.page.add_init_script("const now = Date.now; Date.now = () => now() - 3 * 86_400_000")
    page = signed_in(visit, stub.url, "#/allocations")
    expect(rows(page).first.locator("td").nth(7)).to_have_text(re.compile(rf"^{right}"))
    page.get_by_role("link", name="Overview").click()
    expect(page.locator("#facts .alarm")).to_contain_text("5 d")


def test_no_script_can_make_markup_of_text(stub, visits):
    visit = visits(stub.url)
    visit.expect_fault("TrustedHTML|trusted-types-sink")
    page = signed_in(visit, stub.url)
    # Even a slip in the page's own script could not.
    said = page.evaluate("() => { try { document.body.innerHTML = '<b>x</b>'; return 'done'; } catch (error) { return error.name; } }")
    assert said == "TypeError"


def test_allocations_are_searched_sorted_and_paged(stub, visits):
    page = signed_in(visits(stub.url), stub.url, "#/allocations")
    expect(rows(page)).to_have_count(25)
    expect(page.locator("#shown")).to_have_text("25 of 137")
    ids = lambda: rows(page).evaluate_all("rows => rows.map((row) => row.dataset.key)")
    assert ids() == sorted(it["id"] for it in stub.allocations)[:25]
    next_page, first_page = page.locator("#page-next"), page.locator("#page-first")
    expect(first_page).to_be_disabled()
    first = rows(page).first.get_attribute("data-key")
    for _ in range(5):
        before = rows(page).first.get_attribute("data-key")
        next_page.click()
        expect(rows(page).first).not_to_have_attribute("data-key", before)
    expect(rows(page)).to_have_count(12)
    expect(next_page).to_be_disabled()
    first_page.click()
    expect(rows(page).first).to_have_attribute("data-key", first)

    created = page.locator("th", has_text="Created")
    created.get_by_role("button").click()
    expect(created).to_have_attribute("aria-sort", "descending")
    expect(rows(page).first).to_have_attribute("data-key", stub.allocations[0]["id"])
    created.get_by_role("button").click()
    expect(created).to_have_attribute("aria-sort", "ascending")
    expect(rows(page).first).to_have_attribute("data-key", stub.allocations[-1]["id"])
    page.get_by_label("Per page").select_option("100")
    expect(rows(page)).to_have_count(100)

    page.get_by_label("State").select_option("deserted")
    expect(page.locator("#shown")).to_have_text("22 of 22 that match")
    page.get_by_label("State").select_option("")
    page.get_by_label("Find by").select_option("device")
    page.keyboard.press("Escape")
    page.locator("#find-text").fill(stub.allocations[8]["device_id"].upper()[:6])
    expect(page.locator("#rows-empty")).to_have_text("No live allocation is like that.")
    page.locator("#find-text").fill(stub.allocations[8]["device_id"][:20])
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first).to_have_attribute("data-key", stub.allocations[8]["id"])
    page.locator("#find-text").fill("xyz")
    expect(page.locator("#find-said")).to_have_text("Ids are hex digits: 0 to 9 and a to f.")
    page.locator("#find-text").fill("")
    stub.allocations = []
    expect(page.locator("#rows-empty")).to_have_text("There is no allocation at the moment.")


def test_an_allocation_that_somebody_else_ends_is_shown_as_ended(stub, visits):
    visit = visits(stub.url)
    page = signed_in(visit, stub.url, "#/allocations")
    rows(page).first.get_by_role("button", name="Details").click()
    expect(page.locator("#legs li")).to_have_count(2)
    chosen = rows(page).first.get_attribute("data-key")
    page.locator("#detail-kill").click()
    stub.allocations = [it for it in stub.allocations if it["id"] != chosen]
    expect(page.locator("#detail-said")).to_have_text("It has ended.")
    page.get_by_role("button", name="Kill it").click()
    expect(page.locator("#told")).to_contain_text("had already ended")
    expect(page.locator("#detail-kill")).to_be_hidden()
    page.get_by_role("button", name="Close details").click()
    expect(page.locator("#detail")).to_be_hidden()
    visit.expect_fault("status of 404")


def test_a_token_that_may_only_look_cannot_press_anything(stub, visits):
    stub.role = "read"
    visit = visits(stub.url)
    page = signed_in(visit, stub.url, "#/allocations")
    expect(page.locator("#role")).to_be_visible()
    expect(rows(page)).to_have_count(25)
    expect(page.get_by_role("button", name="Drain …")).to_be_disabled()
    for button in page.locator("#rows .act").all():
        expect(button).to_be_disabled()
    page.get_by_role("link", name="Guard").click()
    expect(page.locator("#blocks .act")).to_be_disabled()
    expect(page.locator("#block-add")).to_be_disabled()
    page.get_by_role("link", name="Activity").click()
    expect(page.locator("#log-now")).to_have_text("info")
    expect(page.locator("#log")).to_be_hidden()
    visit.accessible("read-only")


def test_what_is_refused_says_why_and_can_be_tried_again(stub, visits):
    visit = visits(stub.url)
    page = signed_in(visit, stub.url, "#/guard")
    page.get_by_label("Address or network").fill("nonsense!")
    page.get_by_role("button", name="Block", exact=True).click()
    expect(page.locator("#block-said")).to_have_text("Nonsense! is no network.")
    page.get_by_label("Address or network").fill("198.51.100.0/24")
    page.get_by_role("button", name="Block", exact=True).click()
    expect(page.locator("#blocks tr")).to_have_count(3)
    expect(page.locator("#block-said")).to_be_hidden()
    expect(page.get_by_label("Address or network")).to_have_value("")
    expect(page.locator("input:user-invalid")).to_have_count(0)

    stub.failing["/admin/drain"] = (500, "this was done, and could not be written to the audit log", [])
    page.get_by_role("button", name="Drain …", exact=True).click()
    page.get_by_role("button", name="Drain it").click()
    dialog = page.locator("#ask-drain")
    expect(dialog.get_by_role("alert")).to_have_text("This was done, and could not be written to the audit log.")
    expect(dialog.get_by_role("button", name="Drain it")).to_be_enabled()
    del stub.failing["/admin/drain"]
    dialog.get_by_role("button", name="Drain it").click()
    expect(page.locator("#state")).to_have_text("Draining")
    expect(page.locator("#notice")).to_contain_text("allocations end at")
    visit.picture("made-up-draining")
    page.get_by_role("button", name="Stop draining …").click()
    page.get_by_role("button", name="Stop draining", exact=True).click()
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#notice")).to_be_hidden()
    visit.expect_fault("status of (400|500)")


#: However slow this machine is, what a test holds back is waited for.
PATIENT = "AbortSignal.timeout = () => new AbortController().signal;"


def next_answers(page):
    """Until what was answered before has been dealt with: the page asks again only afterwards."""
    for _ in range(2):
        with page.expect_response(re.compile("admin/stats$")):
            pass


@pytest.mark.parametrize("fails", [False, True])
def test_what_comes_of_a_cancelled_dialog_leaves_the_next_one_alone(stub, visits, fails):
    visit = visits(stub.url)
    visit.expect_fault("status of 500")
    visit.page.add_init_script(PATIENT)
    page = signed_in(visit, stub.url, "#/allocations")
    expect(rows(page)).to_have_count(25)
    first, second, third = sorted(it["id"] for it in stub.allocations)[:3]
    paths = [f"/admin/allocations/{id}" for id in (first, second)]
    held = [stub.hold("DELETE", path) for path in paths]
    if fails:
        stub.failing[paths[0]] = (500, "this came too late", [])
    dialog, button = page.locator("#ask-kill"), page.locator("#ask-kill [type=submit]")
    told, alert = page.locator("#told"), page.locator("#ask-kill .said")
    ask = lambda id: page.locator(f"#rows tr[data-key='{id}']").get_by_role("button", name="Kill").click()

    ask(first)
    button.click()
    expect(button).to_have_text("One moment …")
    dialog.get_by_role("button", name="Cancel").click()
    ask(second)
    expect(button).to_have_text("Kill it")
    button.click()
    expect(button).to_have_text("One moment …")
    with page.expect_response(re.compile(paths[0])):
        held[0].set()
    if not fails:
        expect(told).to_have_text(f"Allocation {first[:12]} has been killed.")
    next_answers(page)
    expect(dialog).to_be_visible()
    expect(alert).to_be_hidden()
    expect(button).to_have_text("One moment …")
    expect(button).to_be_disabled()
    expect(page.locator("#kill-id")).to_have_text(second)
    held[1].set()
    expect(told).to_have_text(f"Allocation {second[:12]} has been killed.")
    expect(dialog).to_be_hidden()
    ask(third)
    expect(button).to_have_text("Kill it")
    expect(button).to_be_enabled()


@pytest.mark.parametrize("view, path, field, button", [
    ("guard", "blocks", "#block-network", "#block-add"),
    ("activity", "log", "#log-filter", "#log-set"),
])
def test_what_is_refused_after_signing_out_is_not_said(stub, visits, view, path, field, button):
    visit = visits(stub.url)
    visit.expect_fault("status of 400")
    visit.page.add_init_script(PATIENT)
    visit.page.add_init_script("""
        const json = Response.prototype.json;
        globalThis.refused = new Promise((resolve, reject) => {
            Response.prototype.json = async function () {
                const read = await json.call(this);
                // When all that follows from it has been done.
                setTimeout(() => resolve(read.status));
                return read;
            };
            setTimeout(() => reject(new Error("nothing was refused")), 60_000);
        });
    """)
    page = signed_in(visit, stub.url, f"#/{view}")
    held = stub.hold("POST" if path == "blocks" else "PUT", f"/admin/{path}")
    page.locator(field).fill("NONSENSE")
    page.locator(button).click()
    expect(page.locator(button)).to_be_disabled()
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#state")).to_have_text(SIGNED_OUT)
    held.set()
    assert page.evaluate("globalThis.refused") == 400
    said = page.locator(button.replace("add", "said").replace("set", "said"))
    assert said.get_attribute("hidden") is not None
    assert said.text_content() == ""


def test_a_relay_that_goes_and_comes_back(stub, visits):
    visit = visits(stub.url)
    visit.expect_fault("ERR_|status of 401")
    page = signed_in(visit, stub.url)
    stub.stop()
    notice = page.locator("#notice")
    expect(page.locator("#state")).to_have_text("Not answering")
    expect(notice).to_contain_text(re.compile(r"No answer from the relay\. What is shown is from before [\d:]+\. Asking again in \d+ s\."))
    expect(notice).to_contain_text("again in 4 s")
    visit.accessible("a relay that has gone")
    visit.picture("made-up-gone")
    again = Stub(stub.port)
    try:
        page.get_by_role("button", name="Ask now").click()
        expect(page.locator("#state")).to_have_text("Ready")
        expect(notice).to_be_hidden()
        page.get_by_role("link", name="Activity").click()
        expect(page.locator("#stream")).to_have_text("live", timeout=40_000)
        again.failing["/admin/stats"] = (401, "the token is not good", [])
        expect(page.locator("#sign-in-said")).to_contain_text("You have been signed out")
        assert page.evaluate("sessionStorage.length") == 0
    finally:
        again.stop()


def test_an_answer_of_another_shape_is_not_the_end(stub, visits):
    visit = visits(stub.url)
    page = signed_in(visit, stub.url)
    stats, stub.stats = stub.stats, lambda: {"at_unix_ms": 0}
    expect(page.locator("#notice")).to_contain_text("This page cannot show what the relay answers")
    assert any("TypeError" in fault for fault in visit.faults), "it is for developers to see, too"
    stub.stats = stats
    expect(page.locator("#notice")).to_be_hidden()
    visit.expect_fault("TypeError")


def test_what_goes_leaves_the_focus_where_it_was(stub, visits):
    visit = visits(stub.url)
    page = signed_in(visit, stub.url, "#/allocations")
    expect(rows(page)).to_have_count(25)
    shown = sorted(it["id"] for it in stub.allocations)
    rows(page).nth(2).get_by_role("button", name="Kill").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#kill-reason")).to_be_focused()
    page.keyboard.press("Enter")
    expect(rows(page).nth(2)).to_have_attribute("data-key", shown[3])
    expect(rows(page).nth(2).get_by_role("button", name="Details")).to_be_focused()
    # The last one leaves the table itself.
    page.locator("#find-text").fill(shown[0])
    expect(rows(page)).to_have_count(1)
    rows(page).first.get_by_role("button", name="Kill").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("#rows-empty")).to_be_visible()
    expect(page.get_by_role("region", name="Live allocations, table")).to_be_focused()

    # A button that cannot be pressed for a moment is in focus again afterwards.
    page.get_by_role("link", name="Guard").click()
    page.get_by_label("Address or network").fill("198.51.100.7")
    page.get_by_role("button", name="Block", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#told")).to_contain_text("is kept out")
    expect(page.get_by_role("button", name="Block", exact=True)).to_be_focused()


def test_a_keyboard_is_enough(stub, visits):
    visit = visits(stub.url)
    page = visit.page
    page.goto(stub.url)
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("Ready")
    focused = lambda: page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id")

    def tab_to(text):
        seen = []
        for _ in range(80):
            page.keyboard.press("Tab")
            seen.append(focused())
            if seen[-1] == text:
                return
        raise AssertionError(f"no {text!r} among {seen}")

    tab_to("Allocations 137")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(25)
    page.keyboard.press("/")
    expect(page.locator("#find-text")).to_be_focused()
    id = stub.allocations[5]["id"]
    page.keyboard.type(id[:9])
    expect(rows(page)).to_have_count(1)
    tab_to(id[:12])
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_focused()
    tab_to("Kill …")
    page.keyboard.press("Enter")
    expect(page.locator("#kill-reason")).to_be_focused()
    page.keyboard.type("too loud")
    page.keyboard.press("Enter")
    expect(page.locator("#told")).to_contain_text("has been killed")
    expect(page.locator("#rows-empty")).to_be_visible()
    assert ("DELETE", f"/admin/allocations/{id}?reason=too+loud") in stub.asked
    # What had the focus is no more, and it has not gone back to the top of the page.
    expect(page.locator("#detail-said")).to_be_visible()
    expect(page.locator("#detail")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()

    page.goto(f"{stub.url}#/overview")
    chart = page.locator("#plot-bytes .chart")
    expect(chart).to_have_attribute("aria-valuenow", "0")
    expect(page.locator("#plot-bytes .legend b").first).to_have_text(re.compile("B$"))
    expect(page.locator("#plot-bytes canvas")).not_to_have_count(0)
    chart.focus()
    # It goes back as far as there is something to see, which is little so soon.
    for _ in range(100):
        page.keyboard.press("ArrowLeft")
        if chart.get_attribute("aria-valuenow") != "0":
            break
        page.wait_for_timeout(100)
    expect(chart).to_have_attribute("aria-valuenow", re.compile("^-[1-9]\\d*$"))
    page.keyboard.press("End")
    expect(chart).to_have_attribute("aria-valuenow", "0")
    visit.expect_fault("status of 404")
